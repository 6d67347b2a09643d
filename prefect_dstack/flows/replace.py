"""Replacing a replica that has stopped answering."""

from __future__ import annotations

from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.replacement import replace
from prefect_dstack.services.run import holding
from prefect_dstack.store.records import load_record

__all__ = ["replace_replica"]


@served_flow(
    name="replace-replica",
    flow_run_name="replace {replica}: {reason}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def replace_replica(name: str, replica: str, reason: str = "it does not answer") -> bool:
    """Replace one replica that fails its probe, while the others serve on; that makes no new revision.

    A replica that answers again by then is left alone.

    Args:
        name: The service.
        replica: The name of the replica, such as `chat-3-0`.
        reason: Why, for the log and the events.

    Returns:
        Whether it was replaced.

    Raises:
        NotFoundError: If there is no such service, or no such replica of it.
        ConflictError: If the service runs on another machine.
    """
    load_record(name)
    with holding(name) as run:
        return replace(load_record(name), replica, reason, run)
