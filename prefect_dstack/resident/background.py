"""The controller of this machine, in the background: kept running by a supervisor, as the local server is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from prefect_dstack.hosts import supervisor
from prefect_dstack.settings import settings

__all__ = ["controller_log", "controller_status", "start_controller", "stop_controller"]


def start_controller(api: str) -> bool:
    """Start the controller of this machine, unless it runs.

    Args:
        api: The URL of the Prefect API that it is to use.

    Returns:
        Whether it was started now.
    """
    if controller_status().alive:
        return False
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
    return True


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
