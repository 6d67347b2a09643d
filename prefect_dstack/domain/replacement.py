"""When a replica that has stopped answering is replaced: one at a time, and ever less often."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from prefect_dstack.domain.record import Replacement, ServiceRecord

__all__ = ["noted", "pause_after", "replica_to_replace"]

LONGEST_PAUSE = 600.0
"""Seconds between two replacements of one replica at most, unless `restart_after` is longer."""
CALM = 3600.0
"""Seconds without a replacement after which earlier ones count no more."""


def replica_to_replace(
    failing: Mapping[str, float],
    replacements: Mapping[str, Replacement],
    restart_after: float,
    now: datetime,
) -> str | None:
    """Decide which replica is to be replaced now.

    A replica that fails its probe gets no requests, so that replacing it takes nothing from what serves.

    Args:
        failing: For how many seconds each replica has failed its probe; only those that do.
        replacements: The last replacement of each replica.
        restart_after: Seconds for which a replica may fail its probe.
        now: The time.

    Returns:
        The one that has failed for longest, of those whose last replacement is long enough ago; None if there
        is none.
    """
    due = {
        name: seconds
        for name, seconds in failing.items()
        if seconds >= restart_after and _rested(replacements.get(name), restart_after, now)
    }
    return max(sorted(due), key=lambda name: due[name], default=None)


def pause_after(times: int, restart_after: float) -> float:
    """Return how long a replica is left alone after it was replaced so many times.

    Args:
        times: How often, with no long time in between; at least 1.
        restart_after: Seconds for which a replica may fail its probe.

    Returns:
        Seconds; twice as many each time, up to ten minutes.
    """
    return max(restart_after, min(restart_after * 2.0 ** min(times - 1, 32), LONGEST_PAUSE))


def noted(record: ServiceRecord, replica: str, reason: str, now: datetime) -> ServiceRecord:
    """Return the record with a replacement noted; those of other revisions are forgotten.

    Args:
        record: The record of the service.
        replica: The replica that is replaced.
        reason: Why, in one line.
        now: The time.
    """
    revision = replica.rpartition("-")[0]
    kept = {name: it for name, it in record.replacements.items() if name.rpartition("-")[0] == revision}
    before = kept.get(replica)
    times = 1
    if before is not None and now - before.at < timedelta(seconds=CALM):
        times = before.times + 1
    kept[replica] = Replacement(at=now, times=times, reason=reason)
    return record.model_copy(update={"replacements": kept})


def _rested(last: Replacement | None, restart_after: float, now: datetime) -> bool:
    return last is None or now - last.at >= timedelta(seconds=pause_after(last.times, restart_after))
