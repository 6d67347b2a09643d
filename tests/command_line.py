"""The installed `prefect-dstack`, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("prefect-dstack")


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Its exit code.
        out: What it wrote to standard output.
        err: What it wrote to standard error.
    """

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which is one JSON document."""
        return json.loads(self.out)


class CommandLine:
    """Runs commands.

    Args:
        directory: Where they run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(
        self, *arguments: str | Path, timeout: float = 120, environment: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run a command to its end."""
        done = subprocess.run(
            [PROGRAM, *map(str, arguments)],
            cwd=self.directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, **options: Any) -> Outcome:
        """Run a command that must succeed."""
        outcome = self(*arguments, **options)
        assert outcome.code == 0, f"{arguments}: {outcome}"
        return outcome

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a command, and go on; its output is in a pipe."""
        return subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_in_a_terminal,
        )


def as_in_a_terminal() -> None:
    """Whoever runs tests in the background has these ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
