"""Forgetting a service that does not serve."""

from __future__ import annotations

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import ConflictError
from prefect_dstack.services.bundles import prune_bundles
from prefect_dstack.services.publication import publish_event
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.store import tokens
from prefect_dstack.store.records import delete_record

__all__ = ["delete"]


def delete(record: ServiceRecord, run: ServiceRun) -> None:
    """Forget a service.

    Args:
        record: The record of the service; its lock is held.
        run: The flow run that does it.

    Raises:
        ConflictError: If something of it still runs.
    """
    found = run.infrastructure.observe(record.name, record.runtimes)
    left = [item.replica.name for item in found.found] + [stamp.name for _, stamp in found.empty]
    left += [f"what was left on {place}" for place in record.left_behind]
    if left:
        raise ConflictError(
            f"{record.name}: {', '.join(left)} still there; stop it again, or run prefect-dstack reconcile"
        )
    # One of another service that gets the name later must not be opened by them.
    for token in tokens.all_tokens():
        if token.service == record.name:
            tokens.delete_token(token.id)
    delete_record(record.name)
    prune_bundles(run.infrastructure, among={revision.bundle for revision in record.revisions})
    publish_event("deleted", record.name, None)
