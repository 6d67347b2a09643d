"""Which processes of this machine are at work."""

from __future__ import annotations

import psutil

__all__ = ["is_at_work"]


def is_at_work(pid: int, started: float | None = None) -> bool:
    """Return whether a process is there that can still do anything.

    A process that has ended stays in the process table until its parent asks how: for good, in a container
    whose first process does not ask.

    Args:
        pid: The process's id.
        started: When it was started, in Unix seconds: its id may have been given to another since.

    Returns:
        Whether it is at work.
    """
    try:
        process = psutil.Process(pid)
        same = started is None or abs(process.create_time() - started) < 1
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False
