"""Programs beside a replica that is a process of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from prefect_dstack.runtimes.entering import Terminal

__all__ = ["ProcessSession", "TerminalSession", "is_in_use", "start_session", "staying"]

CHUNK = 65536
IN_USE = "in-use"
# A leader of a session has its terminal only once it says so, which `Popen` cannot do for it.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def start_session(
    arguments: Sequence[str], environment: Mapping[str, str], directory: Path, terminal: Terminal | None
) -> ProcessSession | TerminalSession:
    """Start a program for somebody who enters.

    Args:
        arguments: The program and its arguments.
        environment: All of its variables.
        directory: Where it starts.
        terminal: Its terminal; None: it has none.

    Returns:
        Its session.
    """
    if terminal is None:
        return ProcessSession(arguments, environment, directory)
    return TerminalSession(arguments, environment, directory, terminal)


class ProcessSession:
    """A program without a terminal; implements `Session`."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._process = subprocess.Popen(
            arguments,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def copy_output(self, out: Callable[[bytes], object], err: Callable[[bytes], object]) -> None:
        """Pass on what it writes; see `Session.copy_output`."""
        errors = threading.Thread(target=_copy, args=(_stream(self._process.stderr), err), daemon=True)
        errors.start()
        _copy(_stream(self._process.stdout), out)
        errors.join()

    def write(self, data: bytes) -> None:
        """Write to its standard input; see `Session.write`."""
        rest = memoryview(data)
        with contextlib.suppress(OSError, ValueError):
            while rest:
                rest = rest[_stream(self._process.stdin).write(rest) or 0 :]

    def end_input(self) -> None:
        """End its standard input; see `Session.end_input`."""
        with contextlib.suppress(OSError):
            _stream(self._process.stdin).close()

    def resize(self, columns: int, rows: int) -> None:
        """Do nothing, as it has no terminal."""

    def exit_code(self) -> int:
        """Wait for its end; see `Session.exit_code`."""
        return _code(self._process)

    def close(self) -> None:
        """End its input. As with any SSH server, a program without a terminal may go on."""
        self.end_input()


class TerminalSession:
    """A program on a terminal of its own; implements `Session`."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path, terminal: Terminal
    ) -> None:
        ours, theirs = os.openpty()
        self._terminal = os.fdopen(ours, "r+b", buffering=0)
        try:
            self.resize(terminal.columns, terminal.rows)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", TAKE_TERMINAL, *arguments],
                cwd=directory,
                env=environment,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        except BaseException:
            self._terminal.close()
            raise
        finally:
            os.close(theirs)
        self._closing = threading.Lock()
        self._closed = False

    def copy_output(self, out: Callable[[bytes], object], err: Callable[[bytes], object]) -> None:
        """Pass on what it writes; see `Session.copy_output`."""
        while True:
            try:
                data = self._terminal.read(CHUNK)
            except (OSError, ValueError):
                # On Linux the end is an error: nobody has the other end open any more.
                return
            if not data:
                return
            out(data)

    def write(self, data: bytes) -> None:
        """Type on its terminal; see `Session.write`."""
        rest = memoryview(data)
        with contextlib.suppress(OSError, ValueError):
            while rest:
                rest = rest[self._terminal.write(rest) or 0 :]

    def end_input(self) -> None:
        """Do nothing: what ends the input of a terminal is typed on it."""

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of its terminal; see `Session.resize`."""
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def exit_code(self) -> int:
        """Wait for its end; see `Session.exit_code`."""
        return _code(self._process)

    def close(self) -> None:
        """Hang up; see `Session.close`."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGHUP)
        self._terminal.close()


@contextlib.contextmanager
def staying(place: Path) -> Iterator[None]:
    """Hold a lock that the kernel takes back when this process ends, however it does.

    Args:
        place: The directory of the replica.
    """
    with (place / IN_USE).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def is_in_use(place: Path) -> bool:
    """Return whether somebody stays; see `staying`.

    Args:
        place: The directory of the replica.
    """
    with contextlib.suppress(FileNotFoundError), (place / IN_USE).open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError  # pragma: no cover - all three were asked for
    return stream


def _copy(stream: IO[bytes], write: Callable[[bytes], object]) -> None:
    with stream:
        while data := stream.read(CHUNK):
            write(data)


def _code(process: subprocess.Popen[bytes]) -> int:
    code = process.wait()
    return code if code >= 0 else 128 - code
