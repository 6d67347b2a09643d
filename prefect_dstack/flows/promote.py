"""Promoting a canary that waits for a person."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.promotion import promote
from prefect_dstack.services.run import tag_with

__all__ = ["apromote_service", "promote_service"]


@served_flow(name="promote-service", flow_run_name="promote {name}")
def promote_service(name: str) -> int:
    """Promote a canary that waits for a person; the waiting flow run continues with it.

    Args:
        name: The service.

    Returns:
        The revision that takes over.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If no canary of it waits.
    """
    tag_with(name)
    return promote(name)


apromote_service = asynchronous(promote_service)
