"""Local ports that lead to a host's."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

import paramiko
from typing_extensions import Self

from prefect_dstack.errors import HostError
from prefect_dstack.hosts.ssh import ChannelRefusedError, Connection

__all__ = ["Forward"]

CHUNK = 65536


class Forward:
    """A port on 127.0.0.1 of this machine that leads to a TCP port as a host sees it.

    Example:
        >>> with Forward(connection, "127.0.0.1", 8000) as forward:  # doctest: +SKIP
        ...     httpx.get(f"http://127.0.0.1:{forward.port}/")

    Args:
        connection: To the host.
        address: The address to reach from there.
        port: The port there.
    """

    def __init__(self, connection: Connection, address: str, port: int) -> None:
        self._connection = connection
        self._target = (address, port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name=f"forward-{port}").start()

    def close(self) -> None:
        """Stop listening, and cut what is still open."""
        # A thread that waits in accept() is woken by a shutdown, not by a close.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            open_sockets = list(self._open)
        for client in open_sockets:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                channel = self._connection.open_tcp(*self._target)
            except (HostError, ChannelRefusedError):
                return
            with self._lock:
                self._open.add(client)
            upward = threading.Thread(target=_send, args=(client, channel), daemon=True)
            upward.start()
            with contextlib.suppress(OSError, EOFError):
                while data := channel.recv(CHUNK):
                    client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            upward.join()
            with self._lock:
                self._open.discard(client)
            channel.close()


def _send(client: socket.socket, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := client.recv(CHUNK):
            channel.sendall(data)
        channel.shutdown_write()
