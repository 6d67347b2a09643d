"""Letting a canary that waits for a person take over."""

from __future__ import annotations

from prefect_dstack.flows.asynchronous import in_thread
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.promotion import promote
from prefect_dstack.services.run import tag_with

__all__ = ["apromote_service", "promote_service"]


@served_flow(name="promote-service", flow_run_name="promote {name}")
def promote_service(name: str) -> int:
    """Let a canary that waits for a person take over; the flow run that waits goes on with it.

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


async def apromote_service(name: str) -> int:
    """Promote a canary without blocking an event loop; see `promote_service` for arguments and errors."""
    return await in_thread(promote_service, name)
