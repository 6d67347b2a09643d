"""A home directory of a test's own, and what a test may have left of it on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.ports import port_is_free

# How many ports above the first a test may use: a service takes the next free one.
PORTS = 5


def _free_block() -> int:
    """The first of some free ports, apart from those that replicas get and that the kernel hands out."""
    for first in random.sample(range(12000, 20000, PORTS), 1000):
        if all(port_is_free(first + number) for number in range(PORTS)):
            return first
    raise RuntimeError("no free ports between 12000 and 20000")


class Home:
    """Where everything goes that a test deploys.

    Args:
        path: An empty directory, used as home directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A blank, which any text that is not quoted would trip over.
        self.state = path / ".prefect dstack"
        self.port = _free_block()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which everything stays in this home."""
        return {
            "HOME": str(self.path),
            "PREFECT_DSTACK_HOME": str(self.state),
            "PREFECT_DSTACK_LOCAL_GATEWAY_PORT": str(self.port),
        }

    def processes(self) -> Iterator[psutil.Process]:
        """Everything that runs in this home, or was started from there."""
        own = psutil.Process()
        ours = {own.pid, *(parent.pid for parent in own.parents())}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    process.pid not in ours
                    and process.status() != psutil.STATUS_ZOMBIE
                    and self._has(process)
                ):
                    yield process

    def _has(self, process: psutil.Process) -> bool:
        home = str(self.path)
        return (
            process.environ().get("HOME") == home
            or process.environ().get("PREFECT_DSTACK_HOME") == str(self.state)
            or Path(process.cwd()).is_relative_to(home)
            or any(home in argument for argument in process.cmdline())
        )

    def leftovers(self) -> list[str]:
        """What is still there, in words; empty after a test that has cleaned up."""
        found = [f"process {it.pid}: {' '.join(it.cmdline())}" for it in self.processes()]
        found += [
            f"port {self.port + number} is in use"
            for number in range(PORTS)
            if not port_is_free(self.port + number)
        ]
        directories = [*self.state.glob("replicas/*/"), *self.state.glob("gateways/*/")]
        found += [f"directory {it}" for it in directories if it.is_dir()]
        found += [f"directory {it}" for it in [self._sockets("local")] if it.exists()]
        return found

    def _sockets(self, gateway: str) -> Path:
        """Where a gateway keeps its sockets when the path of its own directory is too long for them."""
        directory = str(self.state / "gateways" / gateway)
        digest = hashlib.sha256(directory.encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"prefect-dstack-{os.getuid()}-{digest}"

    def clear(self) -> None:
        """Take down whatever a failed test has left."""
        for lock in self.state.rglob("supervisor.lock"):
            supervisor.stop(lock.parent, grace=0)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
