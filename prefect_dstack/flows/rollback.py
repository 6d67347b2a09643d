"""Going back to an earlier revision, and what revisions there were."""

from __future__ import annotations

import asyncio
import difflib

from prefect_dstack.domain.record import Endpoint, Revision, Rollback, ServiceRecord, now, readable
from prefect_dstack.errors import NotFoundError
from prefect_dstack.flows.deploy import put_on_air, superseded
from prefect_dstack.flows.goals import held
from prefect_dstack.flows.preparation import recorded_workload, this_user
from prefect_dstack.flows.restoring import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.tasks.records import load_record

__all__ = ["arollback_service", "changes_of", "rollback_service"]


@served_flow(
    name="rollback-service",
    flow_run_name="rollback {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def rollback_service(name: str, to: int | None = None) -> Endpoint:
    """Put an earlier revision of a service on the air again, in the place of the present one.

    Args:
        name: The service.
        to: The number of the revision; default: the one that served before.

    Returns:
        Where the service answers.

    Raises:
        NotFoundError: If there is no such service or revision.
    """
    load_record(name)
    with held(name) as turn:
        record = load_record(name)
        if (newer := superseded(record)) is not None:
            return newer
        revision = record.revision(to) if to is not None else previous_revision(record)
        if revision.number != record.active:
            revision = revision.returned_to(Rollback(at=now(), by=this_user(), flow_run=turn.flow_run))
        return put_on_air(record, revision, recorded_workload(record, revision), turn, at_once=True)


async def arollback_service(name: str, to: int | None = None) -> Endpoint:
    """Do the same as `rollback_service` without blocking an event loop.

    Args:
        name: The service.
        to: The number of the revision; default: the one that served before.

    Returns:
        Where the service answers.
    """
    return await asyncio.to_thread(rollback_service, name, to)


def previous_revision(record: ServiceRecord) -> Revision:
    """Find the revision that served before the present one.

    Args:
        record: Of the service.

    Returns:
        The newest that did not fail, apart from the active one.

    Raises:
        NotFoundError: If there is none.
    """
    for revision in reversed(record.revisions):
        if revision.number != record.active and revision.outcome in ("superseded", "stopped"):
            return revision
    raise NotFoundError(
        f"{record.name}: no earlier revision that has served is kept ('retain' says how many are)"
    )


def changes_of(record: ServiceRecord, revision: Revision) -> str:
    """Show what a revision changed.

    Args:
        record: Of the service.
        revision: One of its revisions.

    Returns:
        A unified diff against the kept revision before it that did not fail; empty if nothing changed.
    """
    before = [known for known in record.revisions if known.number < revision.number]
    # What failed never served, so nothing was changed from there.
    before = [known for known in before if known.outcome != "failed"] or before
    if not before:
        return ""
    lines = difflib.unified_diff(
        readable(before[-1].configuration).splitlines(),
        readable(revision.configuration).splitlines(),
        f"{record.name}@{before[-1].number}",
        f"{record.name}@{revision.number}",
        lineterm="",
        n=1,
    )
    return "\n".join(lines)
