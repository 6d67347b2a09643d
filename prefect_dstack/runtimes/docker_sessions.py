"""Programs in a container beside its own, and connections from within it."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from docker import DockerClient
from docker.errors import APIError
from docker.models.containers import Container

from prefect_dstack.errors import HostError
from prefect_dstack.runtimes.entering import Terminal

__all__ = ["ContainerSession", "can_connect", "connect", "is_in_use", "start_session", "staying"]

CHUNK = 65536
PAUSE = 0.05
OUT, ERR = 1, 2
SHELL = "/bin/sh"
IN_USE = "read -r _ # prefect-dstack: somebody is here"

# Its number, also that of its process group, is told first: the engine ends nothing on a terminal when we go.
START = """{tell}{environment}shell=$(command -v bash || echo /bin/sh)
if [ -n "$1" ]; then exec "$shell" -c "$1"; fi
exec "$shell"
"""
TELL = 'echo "$$"\n'
HANG_UP = 'kill -HUP "-$1"'

WITH_PYTHON = """
import os, socket, sys, threading

there = socket.create_connection((sys.argv[1], int(sys.argv[2])))

def upward():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)

threading.Thread(target=upward, daemon=True).start()
while data := there.recv(65536):
    while data:
        data = data[os.write(1, data):]
os._exit(0)
"""
WITH_BASH = """
exec 3<>"/dev/tcp/$1/$2" 4<&0 || exit 1
cat <&4 >&3 &
cat <&3
kill $!
"""
HAS_CONNECTOR = "command -v python3 || command -v nc || command -v bash"
CONNECT = """
if command -v python3 >/dev/null; then exec python3 -c "$3" "$1" "$2"; fi
if command -v nc >/dev/null; then exec nc "$1" "$2"; fi
exec bash -c "$4" bash "$1" "$2"
"""


class ContainerSession:
    """A program in a container; implements `Session`.

    Args:
        engine: Where the container is.
        container: Which.
        arguments: The program and its arguments.
        terminal: Its terminal, on which it says its process number first; None: it has none.
        environment: More variables.
    """

    def __init__(
        self,
        engine: DockerClient,
        container: Container,
        arguments: list[str],
        terminal: Terminal | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._engine, self._container, self._terminal = engine, container, terminal
        self._id: str = engine.api.exec_create(
            container.id,
            arguments,
            stdin=True,
            tty=terminal is not None,
            environment=dict(environment or {}),
        )["Id"]
        self._socket = engine.api.exec_start(self._id, tty=terminal is not None, socket=True)
        self._stream = _Hijacked(self._socket)
        self._number = ""
        self._closing = threading.Lock()
        self._closed = False
        if terminal is not None:
            self.resize(terminal.columns, terminal.rows)

    def copy_output(self, out: Callable[[bytes], object], err: Callable[[bytes], object]) -> None:
        """Pass on what it writes; see `Session.copy_output`."""
        with contextlib.suppress(OSError, EOFError):
            if self._terminal is None:
                self._copy_frames(out, err)
                return
            while not self._number.endswith("\n"):
                letter = self._stream.recv(1)
                if not letter:
                    out(self._number.encode())
                    return
                self._number += letter.decode(errors="replace")
            while data := self._stream.recv(CHUNK):
                out(data)

    def write(self, data: bytes) -> None:
        """Write to its standard input; see `Session.write`."""
        with contextlib.suppress(OSError, EOFError):
            self._stream.sendall(data)

    def end_input(self) -> None:
        """End its standard input; see `Session.end_input`."""
        self._stream.end()

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of its terminal; see `Session.resize`."""
        with contextlib.suppress(APIError):
            self._engine.api.exec_resize(self._id, height=rows, width=columns)

    def exit_code(self) -> int:
        """Wait for its end; see `Session.exit_code`."""
        # Its output may end a moment before it does.
        while (found := self._engine.api.exec_inspect(self._id))["Running"]:
            time.sleep(PAUSE)
        return int(found["ExitCode"])

    def close(self) -> None:
        """Hang up; see `Session.close`."""
        # Whoever comes second waits, too: this process may end as soon as all are closed.
        with self._closing:
            if not self._closed:
                self._closed = True
                self._hang_up()
                self._stream.close()

    def _hang_up(self) -> None:
        number = self._number.strip()
        with contextlib.suppress(APIError, OSError, HostError):
            if number.isdigit() and self._engine.api.exec_inspect(self._id)["Running"]:
                self._container.exec_run([SHELL, "-c", HANG_UP, "sh", number])

    def _copy_frames(self, out: Callable[[bytes], object], err: Callable[[bytes], object]) -> None:
        while header := self._stream.exactly(8):
            kind, size = struct.unpack(">BxxxL", header)
            while size:
                data = self._stream.recv(min(size, CHUNK))
                if not data:
                    return
                size -= len(data)
                (err if kind == ERR else out)(data)


class _Hijacked:
    """The connection to the engine that a program's input and output go through."""

    def __init__(self, answered: Any) -> None:
        # A socket hides behind a file; a channel of an SSH connection is one itself.
        self._socket = getattr(answered, "_sock", answered)
        self._socket.settimeout(None)
        # Some of the output may have been read with the answer's head.
        self._read = _already_read(answered)
        self._answered = answered

    def recv(self, size: int) -> bytes:
        """Receive some bytes; none at the end."""
        if self._read:
            data, self._read = self._read[:size], self._read[size:]
            return data
        return bytes(self._socket.recv(size))

    def exactly(self, size: int) -> bytes:
        """Receive so many bytes; none at the end."""
        data = b""
        while len(data) < size:
            part = self.recv(size - len(data))
            if not part:
                return b""
            data += part
        return data

    def sendall(self, data: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(data)

    def end(self) -> None:
        """Send no more."""
        with contextlib.suppress(OSError, EOFError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Wake whoever still receives, and close."""
        with contextlib.suppress(OSError, EOFError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, EOFError):
            self._answered.close()
            self._socket.close()


def _already_read(answered: Any) -> bytes:
    # No public way leads there; the SDK reads the head of the answer through this file.
    file = attrgetter("_response.raw._fp.fp")(answered)
    if isinstance(file, io.BufferedReader):
        own: socket.socket = attrgetter("_sock")(answered)
        own.setblocking(False)
        try:
            return bytes(file.peek(1))
        finally:
            own.settimeout(None)
    return bytes(getattr(file, "_rbuffer", b""))


def start_session(
    engine: DockerClient,
    container: Container,
    command: str,
    terminal: Terminal | None,
    environment: dict[str, str],
    secrets: str | None,
) -> ContainerSession:
    """Start a program for somebody who enters a container.

    Args:
        engine: Where the container is.
        container: Which.
        command: For the shell; empty: the shell itself.
        terminal: Its terminal; None: it has none.
        environment: More variables.
        secrets: The file in the container whose variables it gets too; None: there is none.

    Returns:
        Its session.
    """
    script = START.format(
        tell="" if terminal is None else TELL, environment="" if secrets is None else f". {secrets}\n"
    )
    if terminal is not None:
        environment = {"TERM": terminal.kind, **environment}
    return ContainerSession(engine, container, [SHELL, "-c", script, "sh", command], terminal, environment)


@contextlib.contextmanager
def staying(engine: DockerClient, container: Container) -> Iterator[None]:
    """Leave a program in the container that ends with its input, and so with this process.

    Args:
        engine: Where the container is.
        container: Which.
    """
    session = ContainerSession(engine, container, [SHELL, "-c", IN_USE])
    try:
        yield
    finally:
        session.close()


def is_in_use(engine: DockerClient, container: Container) -> bool:
    """Return whether somebody stays; see `staying`.

    Args:
        engine: Where the container is.
        container: Which.
    """
    for one in container.attrs["ExecIDs"] or ():
        with contextlib.suppress(APIError):
            found = engine.api.exec_inspect(one)
            if found["Running"] and IN_USE in found["ProcessConfig"]["arguments"]:
                return True
    return False


def can_connect(container: Container) -> bool:
    """Return whether a container has a program that can connect to its own ports.

    Args:
        container: Which.
    """
    return int(container.exec_run([SHELL, "-c", HAS_CONNECTOR])[0] or 0) == 0


def connect(engine: DockerClient, container: Container, address: str, port: int) -> socket.socket:
    """Connect as a program of a container does, by one that runs in it.

    Args:
        engine: Where the container is.
        container: Which; see `can_connect`.
        address: As the container sees it.
        port: The TCP port.

    Returns:
        A socket; it ends at once if nothing answers there.
    """
    session = ContainerSession(
        engine,
        container,
        [SHELL, "-c", CONNECT, "sh", address, str(port), WITH_PYTHON, WITH_BASH],
    )
    ours, theirs = socket.socketpair()
    threading.Thread(target=_downward, args=(session, theirs), daemon=True).start()
    threading.Thread(target=_upward, args=(session, theirs), daemon=True).start()
    return ours


def _downward(session: ContainerSession, there: socket.socket) -> None:
    with there:
        with contextlib.suppress(OSError):
            session.copy_output(there.sendall, lambda _: None)
        with contextlib.suppress(OSError):
            there.shutdown(socket.SHUT_RDWR)
    session.close()


def _upward(session: ContainerSession, there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := there.recv(CHUNK):
            session.write(data)
    session.end_input()
