"""Undoing what a dead deployment has left."""

from __future__ import annotations

from prefect_dstack.domain.record import LOST
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.restoration import restore_dead

__all__ = ["restore_service"]


@served_flow(name="restore-service", flow_run_name="restore {name}")
def restore_service(name: str, flow_run: str | None = None, reason: str = LOST) -> None:
    """Undo what a deployment that died has left of a service; what served before serves again.

    Args:
        name: The service.
        flow_run: Only if this flow run was the one that deployed it; None: whichever it was.
        reason: Why the deployment did not make it, for the history.
    """
    restore_dead(name, flow_run, reason)
