"""Which processes of this machine are at work."""

from __future__ import annotations

import psutil

__all__ = ["is_at_work", "started_after_boot"]

TICK = 0.01
"""Seconds; Linux counts starts in these."""


def is_at_work(pid: int, started: float | None = None) -> bool:
    """Return whether a process is there that can still do anything.

    A process that has ended stays in the process table until its parent asks how: for good, in a container
    whose first process does not ask.

    Args:
        pid: The process's id.
        started: When it was started, as `started_after_boot` has it: its id may have been given to another
            since.

    Returns:
        Whether it is at work.
    """
    try:
        process = psutil.Process(pid)
        same = started is None or abs(started_after_boot(process) - started) < 2 * TICK
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def started_after_boot(process: psutil.Process) -> float:
    """Return when a process was started, in seconds after its machine was.

    The time of day would be another one after somebody has set the clock, and the process the same.

    Args:
        process: The process.

    Raises:
        psutil.Error: If it is gone.
    """
    return process.create_time() - psutil.boot_time()
