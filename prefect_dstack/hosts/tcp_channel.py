"""A TCP connection through an SSH connection, in the shape of a socket."""

from __future__ import annotations

import threading
from typing import Any

import paramiko

__all__ = ["TcpChannel"]


class TcpChannel:
    """A channel that ends as a socket does: once it and all files made of it are closed.

    `http.client` closes its socket as soon as it has read the headers of an answer that ends with the
    connection, and reads the body from the file: a channel of paramiko would be closed before it has come.

    Args:
        channel: The channel.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._parts = 1
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def makefile(self, *parameters: Any) -> paramiko.ChannelFile:
        """Return a file of what is sent and received; see `socket.socket.makefile`."""
        with self._lock:
            self._parts += 1
        return _File(self, self._channel, *parameters)

    def close(self) -> None:
        """Close it; the connection lasts until its files are closed, too."""
        if not self._closed:
            self._closed = True
            self.release()

    def release(self) -> None:
        """Let go of it for one of its parts; the last one ends the connection."""
        with self._lock:
            self._parts -= 1
            if self._parts:
                return
        self._channel.close()


class _File(paramiko.ChannelFile):
    """A file that keeps the connection open until it is closed."""

    def __init__(self, connection: TcpChannel, channel: paramiko.Channel, *parameters: Any) -> None:
        super().__init__(channel, *parameters)
        self._connection = connection

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._connection.release()
