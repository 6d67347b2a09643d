"""Stopping a service."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.domain.record import Decision, now
from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.preparation import this_user
from prefect_dstack.services.publication import publish_not_serving
from prefect_dstack.services.restoration import end_approval, take_down
from prefect_dstack.services.run import holding, requested_at
from prefect_dstack.store.records import load_record, save_record
from prefect_dstack.store.runs import deploying

__all__ = ["astop_service", "stop_service"]


@served_flow(
    name="stop-service",
    flow_run_name="stop {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def stop_service(name: str, force: bool = False) -> None:
    """Stop a service: drain its replicas, remove them, and give their machines back.

    Its record is kept, so that it can be deployed again or rolled back.

    Args:
        name: The service.
        force: Go on without the gateway if that cannot be reached, for one that is gone for good.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If it runs on another machine.
        GatewayError: If the gateway cannot be reached.
    """
    load_record(name)
    with holding(name) as run:
        record = load_record(name)
        refuse_elsewhere(record, run.infrastructure.here, "stop")
        revision, pending = record.active, record.approval
        # Wanted from now on is that nothing serves: a stop that dies is completed, not undone.
        stopped = record.stopped().model_copy(update={"asked_at": requested_at()})
        record = stopped.model_copy(update={"deploying": deploying(None, run.flow_run, run.lease)})
        save_record(record)
        take_down(record, run, force=force)
        if pending is not None:
            stopped_by = Decision(approved=False, by=this_user(), at=now(), reason="the service was stopped")
            end_approval(record, pending, stopped_by, run)
        stopped = stopped.model_copy(update={"location": None})
        save_record(stopped)
        publish_not_serving(stopped, "stopped", revision)
        run.log.info("%s: stopped", name)


astop_service = asynchronous(stop_service)
