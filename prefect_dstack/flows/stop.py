"""Taking a service off the air."""

from __future__ import annotations

import asyncio

from prefect import get_run_logger

from prefect_dstack.flows.goals import asked_at, held
from prefect_dstack.flows.restoring import restore_hook, take_off
from prefect_dstack.flows.served import served_flow
from prefect_dstack.tasks.publication import publish_removed
from prefect_dstack.tasks.records import load_record, save_record
from prefect_dstack.tasks.runs import deploying

__all__ = ["astop_service", "stop_service"]


@served_flow(
    name="stop-service",
    flow_run_name="stop {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def stop_service(name: str, force: bool = False) -> None:
    """Take a service off the air: drain its replicas, remove them, and give their machines back.

    Its record is kept, so that it can be deployed again or rolled back.

    Args:
        name: The service.
        force: Go on without the gateway if that cannot be reached, for one that is gone for good.

    Raises:
        NotFoundError: If there is no such service.
        GatewayError: If the gateway cannot be reached.
    """
    load_record(name)
    logger = get_run_logger()
    with held(name) as turn:
        # Wanted from now on is that nothing serves: a stop that dies is completed, not undone.
        stopped = load_record(name).stopped().model_copy(update={"asked_at": asked_at()})
        record = stopped.model_copy(update={"deploying": deploying(None, turn.flow_run, turn.lease)})
        save_record(record)
        take_off(record, turn.flow_run, force=force)
        save_record(stopped)
        publish_removed(name)
        logger.info("%s: stopped", name)


async def astop_service(name: str, force: bool = False) -> None:
    """Do the same as `stop_service` without blocking an event loop.

    Args:
        name: The service.
        force: Go on without the gateway if that cannot be reached, for one that is gone for good.

    Raises:
        NotFoundError: If there is no such service.
        GatewayError: If the gateway cannot be reached.
    """
    await asyncio.to_thread(stop_service, name, force)
