"""Local ports that lead to a machine's.

Connections are led through `Machine.connect`: to a host, each is one more channel of the SSH connection that
is there already, whatever it took to make it. An `ssh` beside it would need keys and passwords that it cannot
be given safely, and is hardly faster: `python -m benchmarks.forwarding` compares the two.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from prefect_dstack.configurations import PortMapping
from prefect_dstack.errors import ConfigurationError, ConflictError, HostError
from prefect_dstack.hosts.machine import Machine

if TYPE_CHECKING:
    import paramiko

__all__ = ["ForwardedPort", "Forwarder", "check_local_ports"]

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
BACKLOG = 128
CHUNK = 65536
# All that a channel can hold: to take a part of it moves the rest.
WHOLE_WINDOW = 2 * 1024**2
CONNECT_TIMEOUT = 15.0
# Seconds for connections to end after they were cut.
PATIENCE = 5.0
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class ForwardedPort:
    """A local port that leads somewhere.

    Attributes:
        local_port: The port on 127.0.0.1 of this machine.
        container_port: The port that it was asked for.
    """

    local_port: int
    container_port: int


class Forwarder:
    """Ports on 127.0.0.1 of this machine that lead to ports as a machine sees them.

    Example:
        >>> with Forwarder(machine, [PortMapping.model_validate("*:8000")]) as forwarder:  # doctest: +SKIP
        ...     httpx.get(f"http://127.0.0.1:{forwarder.ports[0].local_port}/")

    Args:
        machine: Where connections go on from.
        ports: The local ports, and where they lead.
        target: Finds the address and port, as the machine sees them, of a `container_port`; asked anew for
            each connection. Default: the same port of the machine's `publish_address`.
        connect: Connects to a `container_port` in a way of its own, instead of by the machine.

    Raises:
        ConflictError: If a local port is asked for twice, or is taken.
        ConfigurationError: If this user may not listen on a port.
    """

    def __init__(
        self,
        machine: Machine,
        ports: Sequence[PortMapping],
        *,
        target: Callable[[int], tuple[str, int]] | None = None,
        connect: Callable[[int], socket.socket] | None = None,
    ) -> None:
        self._machine = machine
        self._target = target or (lambda port: (machine.publish_address, port))
        self._connect = connect or self._connect_by_machine
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._closed = False
        _refuse_twice(ports)
        self._selector = selectors.DefaultSelector()
        with contextlib.ExitStack() as undo:
            undo.callback(self._selector.close)
            listeners = [undo.enter_context(_listen(port)) for port in ports]
            wakeup, self._wake = (undo.enter_context(end) for end in socket.socketpair())
            for listener, port in zip(listeners, ports, strict=True):
                self._selector.register(listener, selectors.EVENT_READ, port.container_port)
            self._selector.register(wakeup, selectors.EVENT_READ)
            self._open = undo.pop_all()
        self.ports = tuple(
            ForwardedPort(listener.getsockname()[1], port.container_port)
            for listener, port in zip(listeners, ports, strict=True)
        )
        self._accepting = threading.Thread(target=self._accept, daemon=True, name="forwarder")
        self._accepting.start()

    def close(self) -> None:
        """Stop listening, and cut the connections that are still open."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.send(b"x")
        self._accepting.join()
        self._open.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()
        deadline = time.monotonic() + PATIENCE
        for link in links:
            link.thread.join(max(0.0, deadline - time.monotonic()))

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
        while not self._closed:
            for key, _ in self._selector.select():
                if key.data is None:
                    continue
                try:
                    client, _ = key.fileobj.accept()  # type: ignore[union-attr]
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        logger.warning("Too many connections to forwarded ports: raise `ulimit -n`")
                        time.sleep(0.1)
                    continue
                client.setblocking(True)
                link = _Link(client, functools.partial(self._connect, key.data), self._forget)
                with self._lock:
                    self._links.add(link)
                link.thread.start()

    def _connect_by_machine(self, port: int) -> socket.socket:
        return self._machine.connect(*self._target(port), timeout=CONNECT_TIMEOUT)

    def _forget(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)


def check_local_ports(ports: Sequence[PortMapping]) -> None:
    """Refuse local ports that cannot be listened on, before anything is started for them.

    Args:
        ports: The local ports, and where they are to lead.

    Raises:
        ConflictError: If a local port is asked for twice, or is taken.
        ConfigurationError: If this user may not listen on a port.
    """
    _refuse_twice(ports)
    for port in ports:
        if port.local_port is not None:
            _listen(port).close()


class _Link:
    """One connection from a client here to a port there, each direction carried by a thread."""

    def __init__(
        self, client: socket.socket, connect: Callable[[], socket.socket], ended: Callable[[_Link], None]
    ) -> None:
        self._client = client
        self._connect = connect
        self._ended = ended
        self._lock = threading.Lock()
        self._remote: socket.socket | None = None
        self._cut = self._answered = self._failed = False
        self.thread = threading.Thread(target=self._run, daemon=True, name="forwarded")

    def cut(self) -> None:
        """End both directions at once."""
        with self._lock:
            self._cut = True
            _shut(self._client, socket.SHUT_RDWR)
            if self._remote is not None:
                _end(self._remote)

    def _run(self) -> None:
        try:
            with self._client:
                try:
                    self._carry()
                finally:
                    if self._failed:
                        # What is not complete must not look as if it were.
                        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        finally:
            self._ended(self)

    def _carry(self) -> None:
        try:
            remote = self._connect()
        except (OSError, HostError) as error:
            logger.debug("Nothing answers behind a forwarded port: %s", error)
            self._failed = True
            return
        with contextlib.closing(remote):
            with self._lock:
                if self._cut:
                    return
                self._remote = remote
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            remote.settimeout(None)
            upward = threading.Thread(target=self._pump, args=(self._client, remote), daemon=True)
            upward.start()
            self._pump(remote, self._client)
            upward.join()
            with self._lock:
                self._remote = None
            if (self._failed or self._cut) and type(remote) is socket.socket:
                # A server that still sends must not wait for a window that never opens again.
                remote.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Carry bytes until their end, which is handed on, while the other direction may go on."""
        complete = False
        size = CHUNK if isinstance(source, socket.socket) else WHOLE_WINDOW
        try:
            while data := source.recv(size):
                sink.sendall(data)
            complete = not _is_lost(source)
        except (OSError, EOFError) as error:
            logger.debug("A forwarded connection broke: %s", error)
        finally:
            if complete:
                _shut(sink, socket.SHUT_WR)
                self._answered = self._answered or sink is self._client
            else:
                self._fail()

    def _fail(self) -> None:
        with self._lock:
            # A peer may have said all it had to say before it stopped listening.
            self._failed = not self._answered
            _shut(self._client, socket.SHUT_RD)
            if self._remote is not None:
                _end(self._remote)


def _refuse_twice(ports: Sequence[PortMapping]) -> None:
    taken = [port.local_port for port in ports if port.local_port is not None]
    for port in taken:
        if taken.count(port) > 1:
            raise ConflictError(
                f"port {port} of this machine is asked for twice: write `*:PORT` for any free one"
            )


def _listen(port: PortMapping) -> socket.socket:
    number = port.local_port
    try:
        listener = socket.create_server((ADDRESS, number or 0), backlog=BACKLOG)
    except OSError as error:
        other = f"write `OTHER:{port.container_port}`, or `*:{port.container_port}` for any free port"
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(f"port {number} of this machine is taken: {other}") from error
        if error.errno == errno.EACCES:
            raise ConfigurationError(f"port {number} of this machine is for root only: {other}") from error
        raise HostError(f"this machine: cannot listen on port {number}: {error.strerror}") from error
    # A client that is gone again before it is accepted must not hold up the others.
    listener.setblocking(False)
    return listener


def _is_lost(source: object) -> bool:
    if isinstance(source, socket.socket):
        return False
    from prefect_dstack.hosts.transport import is_lost

    return is_lost(cast("paramiko.Channel", source))


def _shut(end: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError, EOFError):
        end.shutdown(how)


def _end(remote: socket.socket) -> None:
    """Wake whoever reads from it or writes to it."""
    _shut(remote, socket.SHUT_RDWR)
    if type(remote) is not socket.socket:
        remote.close()  # only a close wakes the reader of a channel
