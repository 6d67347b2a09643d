"""Run commands on this machine, and start processes that are the first of their own Linux namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.polling import wait_until
from tests.testbed.cgroups import ControlGroup

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

# Joins the control groups named before `--`, then becomes the command behind it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'

_FLAGS = {"mount": "-m", "pid": "-p", "network": "-n", "uts": "-u", "ipc": "-i", "cgroup": "-C"}


def run(command: Sequence[str], *, input: str | None = None) -> str:  # noqa: A002 - as in subprocess
    """Run a command of the testbed's own on this machine and return its standard output.

    Raises:
        RuntimeError: It failed; carries what it wrote to standard error.
    """
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class NamespacedProcess:
    """The first process of new Linux namespaces; when it dies, the kernel kills all others in them.

    Its standard input is a pipe that nobody else holds: it reads a line when it may go on, and the end of the
    file when the testing process is gone.

    Args:
        command: What to run.
        namespaces: Which namespaces are its own: `pid` and any of `mount`, `network`, `uts`, `ipc`, `cgroup`.
        group: The control group that it and its children live in; must exist.
        log: File that gets its output.
        environment: Its environment variables, beside `ENVIRONMENT`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        namespaces: Sequence[str],
        group: ControlGroup,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._group = group
        self._flags = [_FLAGS[name] for name in namespaces]
        self._environment = {**ENVIRONMENT, **(environment or {})}
        unshare = ["unshare", *self._flags, "--fork", "--kill-child", *command]
        with log.open("ab") as output:
            self._outer = subprocess.Popen(
                self._joining(unshare),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")

        def first_process() -> str:
            if self._outer.poll() is not None:
                raise RuntimeError(f"no namespaces: {log.read_text(errors='replace').strip()}")
            return children.read_text().strip()

        try:
            self.pid = int(wait_until(first_process, 10, "the namespaces exist", interval=0.005))
        except BaseException:
            self._outer.kill()
            self._reap()
            raise

    @property
    def alive(self) -> bool:
        """Whether the first process still runs."""
        return self._outer.poll() is None

    @property
    def root(self) -> Path:
        """Its root directory, as seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def go_on(self) -> None:
        """Send the line that the first process waits for."""
        assert self._outer.stdin is not None
        self._outer.stdin.write(b"\n")
        self._outer.stdin.flush()

    def kill(self) -> None:
        """Kill the first process, and so every process in its namespaces; returns when they are dead."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def popen(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command inside; `options` as for `subprocess.Popen`."""
        inside = ["nsenter", "-t", str(self.pid), *self._flags, "--", *command]
        process: subprocess.Popen[str] = subprocess.Popen(
            self._joining(inside),
            env={**self._environment, **(environment or {})},
            start_new_session=True,
            text=True,
            **options,
        )
        return process

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 - as in subprocess
        timeout: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; nothing is raised when it fails.

        Raises:
            subprocess.TimeoutExpired: It took longer than `timeout` seconds, and was killed.
        """
        process = self.popen(
            command,
            environment=environment,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                raise
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def _joining(self, command: Sequence[str]) -> list[str]:
        return ["/bin/sh", "-c", _JOIN, "join", *map(str, self._group.entrances()), "--", *command]

    def _reap(self) -> None:
        self._outer.wait()
        assert self._outer.stdin is not None
        self._outer.stdin.close()
