"""Replacing replicas whose machines are about to go, before they go."""

from __future__ import annotations

from collections.abc import Collection

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.services.deployment import scale
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.preparation import recorded
from prefect_dstack.services.publication import publish_event
from prefect_dstack.services.run import ServiceRun

__all__ = ["substitute"]


def substitute(record: ServiceRecord, replicas: Collection[str], reason: str, run: ServiceRun) -> bool:
    """Start others in the place of some replicas, and drain those once the others serve.

    Args:
        record: The record of the service; its lock is held.
        replicas: The names of the replicas that are to go.
        reason: Why, in one line.
        run: The flow run that does it.

    Returns:
        Whether any of them was to serve still.

    Raises:
        PrefectDstackError: If the others do not come to serve; the replicas stay wanted then.
    """
    refuse_elsewhere(record, run.infrastructure.here, "scale")
    active, desired = record.active_revision, record.desired
    leaving = {name: number for name, number in record.numbers_by_name.items() if name in replicas}
    if active is None or desired is None or not leaving:
        run.log.info("%s: none of %s is to serve any more", record.name, ", ".join(sorted(replicas)))
        return False
    run.log.warning("%s: others take the place of %s: %s", record.name, ", ".join(leaving), reason)
    publish_event("interrupted", record.name, active.number, {"replicas": list(leaving), "reason": reason})
    prepared = recorded(record, active, run.infrastructure.sources)
    scale(record, prepared, run, desired, leaving.values())
    return True
