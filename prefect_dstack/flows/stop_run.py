"""Stopping a task or a development environment."""

from __future__ import annotations

from prefect import get_run_logger

from prefect_dstack.errors import ConflictError
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.run import flow_run_id
from prefect_dstack.services.runs.names import end_lost_run, remove_run
from prefect_dstack.store.run_records import find_run, load_run, save_run
from prefect_dstack.store.runs import has_died
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["stop_run"]


@served_flow(name="stop-run", flow_run_name="stop {name}")
def stop_run(name: str) -> None:
    """Stop a task or a development environment, and remove its nodes.

    Args:
        name: The run.

    Raises:
        NotFoundError: If there is no such run.
        ConflictError: If it runs on another machine.
    """
    record = load_run(name)
    infrastructure = resolve_infrastructure()
    if infrastructure.here.differs_from(record.location):
        raise ConflictError(
            f"{name}: runs on {record.location}, and this is {infrastructure.here}: stop it there"
        )
    if not record.is_over:
        # The process that takes care of it ends when its nodes are gone.
        save_run(record.model_copy(update={"state": "stopping"}))
    remove_run(record, infrastructure)
    fresh, log = find_run(name), get_run_logger()
    if fresh is not None and not fresh.is_over and (fresh.working is None or has_died(fresh.working)):
        end_lost_run(name, infrastructure, flow_run_id(), log, state="stopped", reason="it was stopped")
    log.info("%s: stopped", name)
