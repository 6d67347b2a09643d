"""Replacing replicas before their machines go."""

from __future__ import annotations

from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.run import holding
from prefect_dstack.services.substitution import substitute
from prefect_dstack.store.records import load_record

__all__ = ["substitute_replicas"]


@served_flow(
    name="substitute-replicas",
    flow_run_name="substitute replicas of {name}: {reason}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def substitute_replicas(name: str, replicas: list[str], reason: str = "their machines are to go") -> bool:
    """Start others in the place of some replicas, and drain those once the others serve.

    That makes no new revision. Replicas that are not to serve any more are left alone.

    Args:
        name: The service.
        replicas: The names of the replicas, such as `chat-3-0`.
        reason: Why, for the log and the events.

    Returns:
        Whether any of them was to serve still.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If the service runs on another machine.
    """
    load_record(name)
    with holding(name) as run:
        return substitute(load_record(name), replicas, reason, run)
