"""Which of several runs that wait for a machine tries next: a decision, and no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from prefect_dstack.domain.run_record import RunRecord

__all__ = ["ahead_of"]


def ahead_of(run: RunRecord, others: Iterable[RunRecord], at: datetime, patience: float) -> RunRecord | None:
    """Return a run of higher priority that waits, too, and has not tried since this one did.

    So what becomes free is the other's first, and nobody waits for a machine that only another one lacks.

    Args:
        run: The run that would try.
        others: All runs.
        at: The time.
        patience: Seconds after which a run that has not tried again does not count any more.

    Returns:
        The run that is to try first; None: it is this one's turn.
    """
    since = run.tried_at or run.created_at
    for other in others:
        waits = other.name != run.name and other.tried_at is not None and not other.is_over
        if not waits or other.tried_at is None or _priority(other) <= _priority(run):
            continue
        if other.tried_at <= since and at - other.tried_at < timedelta(seconds=patience):
            return other
    return None


def _priority(run: RunRecord) -> int:
    return int(run.configuration.get("priority") or 0)
