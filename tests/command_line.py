"""The installed `prefect-dstack`, as a user calls it.

To import Prefect takes longer than most commands do, so that those with nothing unusual in their environment
are forked from a process that has done it. The others, and those that go on beside a test, are the program.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forking import forked

PROGRAM = Path(sys.executable).with_name("prefect-dstack")
# Read by Python as it starts: what was forked has that of before any test.
PYTHONPATH = os.environ.get("PYTHONPATH")


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
        words = [str(PROGRAM), *map(str, arguments)]
        same = os.environ.get("PYTHONPATH") == PYTHONPATH
        if environment is None and "PREFECT_API_URL" in os.environ and same:
            return self._forked(words, timeout)
        done = subprocess.run(
            words,
            cwd=self.directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def _forked(self, words: list[str], timeout: float) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="prefect-dstack-command-") as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            process = forked(_run, words, directory=self.directory, streams=(out, err))
            process.join(timeout)
            if process.exitcode is None:
                process.kill()
                process.join()
                raise subprocess.TimeoutExpired(words, timeout, out.read_bytes(), err.read_bytes())
            code = process.exitcode
            process.close()
            return Outcome(code, out.read_text(), err.read_text())

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


def _run(words: list[str]) -> None:
    """Be the program."""
    sys.argv = words
    as_in_a_terminal()
    from prefect_dstack.cli.main import main

    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    # Python's own end of a process, which forked ones do not come to: Prefect sends its last events there.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)
