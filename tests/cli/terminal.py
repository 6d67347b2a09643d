"""A terminal, with a person in front of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path

from tests.command_line import PROGRAM

COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command in a pseudo-terminal, by default the installed one.

    Args:
        directory: Where it runs.
        arguments: Those of `prefect-dstack`.
        columns: The width of the terminal.
        environment: Variables beside those of the tests.
        program: What runs there; default: `prefect-dstack`.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str | Path,
        columns: int = 100,
        environment: Mapping[str, str] | None = None,
        program: str | Path = PROGRAM,
    ) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [program, *map(str, arguments)],
            cwd=directory,
            env={**inherited, "TERM": "xterm-256color", **(environment or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_in_front,
        )
        os.close(slave)
        self._started = time.monotonic()
        self.parts: list[tuple[float, str]] = []

    @property
    def raw(self) -> str:
        """What it got so far, as it came."""
        return "".join(part for _, part in self.parts)

    @property
    def text(self) -> str:
        """What was shown so far, without colours."""
        return COLOUR.sub("", self.raw).replace("\r", "")

    @property
    def lines(self) -> list[str]:
        """What was shown so far, line by line."""
        return [line.rstrip() for line in self.text.splitlines()]

    def expect(self, text: str | re.Pattern[str], timeout: float = 60) -> None:
        """Read until a text, or what a pattern finds, is shown."""
        pattern = re.compile(re.escape(text)) if isinstance(text, str) else text
        deadline = time.monotonic() + timeout
        while not pattern.search(self.text):
            assert self._read(deadline), f"{text!r} was not shown: {self.text}"

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._master, line.encode() + b"\n")

    def press_ctrl_c(self) -> None:
        """Interrupt it as a terminal does."""
        os.write(self._master, b"\x03")

    def end(self, timeout: float = 120) -> int:
        """Read to the end, and return the exit code."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        try:
            return self.process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.close()

    def close(self) -> None:
        """Take it down if it is still there."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._master)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux says so when the other end is closed
                raise
            return False
        self.parts.append((time.monotonic() - self._started, data.decode(errors="replace")))
        return bool(data)


def _in_front() -> None:
    """Make the pseudo-terminal the one that Ctrl-C comes from."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
