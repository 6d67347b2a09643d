"""Revisions that wait for a person: how to decide, and promoting a canary."""

from __future__ import annotations

from uuid import UUID

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import ConflictError
from prefect_dstack.store.clients import api_client
from prefect_dstack.store.records import load_record
from prefect_dstack.store.runs import is_paused

__all__ = ["how_to_approve", "how_to_decide", "promote"]


def how_to_approve(name: str) -> str:
    """Return the commands with which a person decides.

    Args:
        name: The service.
    """
    return f"prefect-dstack approve {name}, or prefect-dstack reject {name}"


def how_to_decide(record: ServiceRecord) -> str:
    """Return what a person can do about a canary that waits.

    Args:
        record: Of the service.

    Returns:
        How it is promoted, and how it is taken back.
    """
    flow_run = "" if record.deploying is None else record.deploying.flow_run
    return f"prefect-dstack promote {record.name}, or prefect flow-run cancel {flow_run}"


def promote(name: str) -> int:
    """Promote a canary that waits for a person; the waiting flow run continues with it.

    Args:
        name: The service.

    Returns:
        The revision that takes over.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If no canary of it waits.
    """
    deploying = load_record(name).deploying
    if deploying is None or deploying.revision is None or not is_paused(deploying.flow_run):
        raise ConflictError(f"{name}: no canary waits to be promoted; prefect-dstack ps shows how it is")
    with api_client() as client:
        client.resume_flow_run(UUID(deploying.flow_run))
    return deploying.revision
