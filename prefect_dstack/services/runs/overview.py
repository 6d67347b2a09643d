"""What is wanted of tasks and development environments, beside what actually runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.run_record import RunRecord
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.store.run_records import all_runs
from prefect_dstack.store.runs import has_died
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["RunOverview", "run_overview"]

PARALLEL_RUNS = 16


class RunOverview(BaseModel):
    """One task or development environment: wanted, and actual."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["task", "dev-environment"] = Field(description="What it is.")
    name: str = Field(description="The name of the run.")
    run: int = Field(description="Which run under this name it is.")
    state: str = Field(
        description="How it is: provisioning, running, done, failed, stopping or stopped; `unfinished`: its "
        "process has died."
    )
    exit_code: int | None = Field(description="How it ended.")
    wanted: int = Field(description="How many nodes it has while it runs.")
    running: int = Field(description="How many of them run.")
    created_at: datetime = Field(description="When it began.")
    location: str | None = Field(description="The machine on which alone it can be reached; None: any.")
    problems: list[str] = Field(description="What is not as it should be.")


@shared_connections()
def run_overview() -> list[RunOverview]:
    """Inspect every task and development environment, several at a time.

    Returns:
        Them by name.
    """
    records = all_runs()
    infrastructure = resolve_infrastructure()
    with ThreadPoolExecutor(PARALLEL_RUNS) as pool:
        looks = [pool.submit(copy_context().run, _overview_of, record, infrastructure) for record in records]
    return sorted((look.result() for look in looks), key=lambda run: run.name)


def _overview_of(record: RunRecord, infrastructure: Infrastructure) -> RunOverview:
    problems = [record.reason] if record.state == "failed" else []
    state, running = str(record.state), 0
    if record.working is not None and not record.is_over and has_died(record.working):
        state = "unfinished"
        problems.append("its process has died; prefect-dstack reconcile takes it down")
    elsewhere = infrastructure.here.differs_from(record.location)
    if not record.is_over and not elsewhere:
        seen = infrastructure.observe(record.name, [record.runtime])
        running = sum(found.status.state == "running" for found in seen.found)
        problems += [f"{name} cannot be asked: {reason}" for name, reason in seen.unlisted.items()]
        problems += [f"{name} does not answer: {reason}" for name, reason in seen.unreachable.items()]
    return RunOverview.model_validate(
        {
            "kind": record.kind,
            "name": record.name,
            "run": record.number,
            "state": state,
            "exit_code": record.exit_code,
            "wanted": 0 if record.is_over else record.nodes,
            "running": running,
            "created_at": record.created_at,
            "location": None if record.location is None else str(record.location),
            "problems": problems,
        }
    )
