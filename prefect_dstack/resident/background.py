"""The controller of this machine, in the background: kept running by a supervisor, as the local server is."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect_dstack.errors import HostError
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.output import read_output
from prefect_dstack.settings import settings

__all__ = ["WATCHING", "controller_log", "controller_status", "start_controller", "stop_controller"]


WATCHING = "watching"
"""What a controller writes when it has begun."""
POLL = 0.1


def start_controller(api: str, timeout: float | None = None) -> bool:
    """Start the controller of this machine, unless it runs.

    Args:
        api: The URL of the Prefect API that it is to use.
        timeout: For how many seconds to wait until it watches; None: do not wait.

    Returns:
        Whether it was started now.

    Raises:
        HostError: If it ends instead of watching, and is not started again then; or if it does not watch in
            time, and goes on.
    """
    if controller_status().alive:
        return False
    began = datetime.now(UTC)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "LANG", "PATH", "TMPDIR", "TZ", "USER", "DOCKER_HOST", "SSH_AUTH_SOCK")
        or name.startswith(("PREFECT_", "AWS_"))
    }
    supervisor.start(
        _directory(),
        supervisor.Program(
            arguments=[sys.executable, "-m", "prefect_dstack.resident.main"],
            environment={**inherited, "PREFECT_API_URL": api},
            working_directory=settings().home,
        ),
    )
    if timeout is not None:
        _wait_until_watching(began, timeout)
    return True


def _wait_until_watching(began: datetime, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        written = list(read_output(_directory(), since=began))
        if any(line.endswith(f" {WATCHING}") for line in written):
            return
        status = controller_status()
        if status.exit_code is not None or not status.alive:
            stop_controller()
            reason = written[-1] if written else f"exit code {status.exit_code}"
            raise HostError(f"the controller could not start: {reason}")
        time.sleep(POLL)
    raise HostError(f"the controller does not watch after {timeout:.0f} s; it writes to {controller_log()}")


def stop_controller() -> bool:
    """Stop the controller of this machine.

    Returns:
        Whether it ran.
    """
    alive = controller_status().alive
    supervisor.stop(_directory(), grace=30.0)
    return alive


def controller_status() -> supervisor.ProgramStatus:
    """Return how the controller of this machine is."""
    return supervisor.status(_directory())


def controller_log() -> Path:
    """Return where the controller of this machine writes."""
    return _directory() / "output.log"


def _directory() -> Path:
    return settings().home / "controller"
