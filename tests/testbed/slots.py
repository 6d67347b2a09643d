"""A place for one testbed or engine on this machine: its name, its directory, and the removal of all it left.

Everything that a testbed makes carries the name of its slot: a network namespace, a network interface,
control groups, a directory. So whoever knows the name can remove it all: the next user of the slot, or the
janitor, a process that outlives a test run which is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.testbed.cgroups import ControlGroup
from tests.testbed.processes import run

STATE = Path("/var/tmp/prefect-dstack-testbed")
"""Holds the directory and the lock file of each slot; must not lie on an overlay file system."""

_REPOSITORY = Path(__file__).parents[2]


def remove_everything(name: str) -> None:
    """Remove all that carries the name of a slot: processes, control groups, network, files."""
    ControlGroup(name).remove()
    if Path("/run/netns", name).exists():
        run(["ip", "netns", "delete", name])
    if Path("/sys/class/net", name).exists():
        run(["ip", "link", "delete", name])
    shutil.rmtree(STATE / name, ignore_errors=True)
    if (STATE / name).exists():
        shutil.rmtree(STATE / name)


class Slot:
    """The first free place of a kind, held until it is closed; what an earlier holder left is removed first.

    Args:
        kind: Prefix of the name, at most 12 characters: the name is also that of a network interface.
        places: How many places of this kind the machine has.

    Raises:
        RuntimeError: All places are held by others.
    """

    def __init__(self, kind: str, places: int = 8) -> None:
        STATE.mkdir(exist_ok=True)
        for number in range(places):
            lock = os.open(STATE / f"{kind}-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self.number = number
            self.name = f"{kind}-{number}"
            break
        else:
            raise RuntimeError(f"all {places} places for a {kind} are in use on this machine")
        self.directory = STATE / self.name
        remove_everything(self.name)
        self.directory.mkdir(mode=0o755)
        self.group = ControlGroup(self.name)
        # The janitor inherits the lock: the place is free again when it has cleaned up.
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "tests.testbed.slots", self.name],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[lock],
            start_new_session=True,
        )
        os.close(lock)

    def close(self) -> None:
        """Let the janitor remove everything, and wait until it has.

        Raises:
            RuntimeError: Something could not be removed.
        """
        _, errors = self._janitor.communicate()
        if self._janitor.returncode:
            raise RuntimeError(f"leftovers of {self.name}: {errors.decode(errors='replace').strip()}")

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _be_janitor(name: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Ends when the test run closes its end of the pipe, or dies.
    sys.stdin.buffer.read()
    remove_everything(name)


if __name__ == "__main__":
    _be_janitor(sys.argv[1])
