"""Deciding about a revision that waits for approval."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.domain.record import Endpoint
from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.decision import approve, reject
from prefect_dstack.services.preparation import this_user
from prefect_dstack.services.run import holding
from prefect_dstack.store.records import load_record

__all__ = ["aapprove_service", "approve_service", "areject_service", "reject_service"]


@served_flow(
    name="approve-service",
    flow_run_name="approve {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def approve_service(name: str, reason: str = "", by: str | None = None) -> Endpoint:
    """Approve the revision of a service that waits for it.

    It goes on as any other deployment does, with a canary if the configuration asks for one. A flow run that
    is suspended until then ends too.

    Args:
        name: The service.
        reason: Why, for the history.
        by: Who approves; default: this user.

    Returns:
        Where the service answers.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If no revision waits for approval, its time is over, or the service runs on another
            machine.
        PrefectDstackError: If the revision does not make it; what served before serves on.
    """
    load_record(name)
    with holding(name) as run:
        return approve(load_record(name), run, by=by or this_user(), reason=reason)


@served_flow(
    name="reject-service",
    flow_run_name="reject {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def reject_service(name: str, reason: str = "", by: str | None = None) -> None:
    """Remove the revision of a service that waits for approval; what serves is left as it is.

    Args:
        name: The service.
        reason: Why, for the history.
        by: Who rejects; default: this user.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If no revision waits for approval, its time is over, or the service runs on another
            machine.
    """
    load_record(name)
    with holding(name) as run:
        reject(load_record(name), run, by=by or this_user(), reason=reason)


aapprove_service = asynchronous(approve_service)
areject_service = asynchronous(reject_service)
