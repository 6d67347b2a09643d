"""Replacing the replicas of a service by new ones of the same kind."""

from __future__ import annotations

from dataclasses import replace

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.domain.record import Endpoint
from prefect_dstack.errors import ConflictError
from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.deployment import deploy, superseded
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.model_versions import model_version
from prefect_dstack.services.preparation import recorded
from prefect_dstack.services.run import holding
from prefect_dstack.store.records import load_record

__all__ = ["arestart_service", "restart_service"]


@served_flow(
    name="restart-service",
    flow_run_name="restart {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def restart_service(name: str) -> Endpoint:
    """Start new replicas of what serves, and take the old ones down when the new ones are ready.

    That is a new revision with the configuration and the files of the present one; secrets and the model are
    read anew.

    Args:
        name: The service.

    Returns:
        Where the service answers.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If it does not serve, or runs on another machine.
    """
    load_record(name)
    with holding(name) as run:
        record = load_record(name)
        refuse_elsewhere(record, run.infrastructure.here, "restart")
        if (newer := superseded(record, run)) is not None:
            return newer
        if record.active_revision is None:
            raise ConflictError(f"{name}: does not serve, so it cannot be restarted; apply its file first")
        prepared = recorded(record, record.active_revision, run.infrastructure.sources)
        version = model_version(prepared.configuration, run.infrastructure)
        prepared = replace(prepared, model_version=version)
        return deploy(record, prepared, run, force=True, move=False)


arestart_service = asynchronous(restart_service)
