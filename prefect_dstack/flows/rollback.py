"""Going back to an earlier revision."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.domain.record import Endpoint, Rollback, now
from prefect_dstack.errors import ConflictError
from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.deployment import put_revision, superseded
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.preparation import desired_replicas, recorded, this_user
from prefect_dstack.services.run import holding
from prefect_dstack.store.records import load_record

__all__ = ["arollback_service", "rollback_service"]


@served_flow(
    name="rollback-service",
    flow_run_name="rollback {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def rollback_service(name: str, to: int | None = None) -> Endpoint:
    """Return a service to an earlier revision.

    Args:
        name: The service.
        to: The number of the revision; default: the one that served last before the present one, or, of a
            stopped service, the one that was stopped.

    Returns:
        Where the service answers.

    Raises:
        NotFoundError: If there is no such service or revision.
        ConflictError: If it runs on another machine, or the revision was rejected.
    """
    load_record(name)
    with holding(name) as run:
        record = load_record(name)
        refuse_elsewhere(record, run.infrastructure.here, "rollback")
        if (newer := superseded(record, run)) is not None:
            return newer
        revision = record.revision(to) if to is not None else record.previous_revision
        if revision.is_rejected:
            raise ConflictError(
                f"{name}@{revision.number}: {revision.reason or 'was rejected'}; apply its file to have it "
                "judged anew"
            )
        if revision.number != record.active:
            revision = revision.returned_to(Rollback(at=now(), by=this_user(), flow_run=run.flow_run))
        prepared = recorded(record, revision, run.infrastructure.sources)
        desired = desired_replicas(record, prepared.configuration)
        return put_revision(
            record, revision, prepared, run, desired=desired, at_once=True, event="rolled-back"
        )


arollback_service = asynchronous(rollback_service)
