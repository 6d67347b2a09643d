"""Prefect deployments that the `schedule` of a file has made, and when they run next."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Literal

from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.store.clients import api_client

__all__ = [
    "FLOWS",
    "SCHEDULED",
    "ScheduleOverview",
    "all_schedules",
    "has_worker",
    "provide_work_pool",
    "remove_schedule",
]

SCHEDULED = "prefect-dstack:scheduled"
"""The tag of the deployments that the schedule of a file has made, and of their flow runs."""

FLOWS = {"service": "deploy-service", "task": "run-task", "dev-environment": "run-dev-environment"}
"""The flow that a schedule runs, by what it starts."""


class ScheduleOverview(BaseModel):
    """A service, task or development environment that a schedule starts."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of what is started.")
    kind: Literal["service", "task", "dev-environment"] = Field(description="What it is.")
    state: Literal["scheduled"] = Field(default="scheduled", description="How it is.")
    deployment: str = Field(description="The Prefect deployment that starts it.")
    cron: list[str] = Field(description="When, as cron expressions, in UTC.")
    work_pool: str = Field(description="The work pool whose workers start it.")
    paused: bool = Field(description="Whether the schedule is paused.")
    next: datetime | None = Field(
        description="When it is started next; None: Prefect has not planned it yet."
    )


def all_schedules() -> list[ScheduleOverview]:
    """Return what schedules start, by name."""
    with api_client() as client:
        found = client.read_deployments(deployment_filter=_scheduled())
        if not found:
            return []
        planned = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[SCHEDULED]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )
    starts = {run.deployment_id: run.expected_start_time for run in reversed(planned)}
    return sorted((_overview(it, starts.get(it.id)) for it in found), key=lambda schedule: schedule.name)


def _scheduled() -> DeploymentFilter:
    return DeploymentFilter(tags=DeploymentFilterTags(all_=[SCHEDULED]))


def _overview(deployment: DeploymentResponse, start: datetime | None) -> ScheduleOverview:
    (kind,) = FLOWS.keys() & {tag.partition(":")[0] for tag in deployment.tags}
    return ScheduleOverview.model_validate(
        {
            "name": deployment.name,
            "kind": kind,
            "deployment": f"{FLOWS[kind]}/{deployment.name}",
            "cron": sorted(
                it.schedule.cron for it in deployment.schedules if isinstance(it.schedule, CronSchedule)
            ),
            "work_pool": deployment.work_pool_name,
            "paused": deployment.paused or not any(it.active for it in deployment.schedules),
            "next": None if start is None else start.astimezone(UTC),
        }
    )


def remove_schedule(name: str) -> bool:
    """Delete the deployment that starts something on a schedule, and the runs that are planned.

    Args:
        name: What it starts.

    Returns:
        Whether there was one.
    """
    with api_client() as client:
        found = [it for it in client.read_deployments(deployment_filter=_scheduled()) if it.name == name]
        for deployment in found:
            client.delete_deployment(deployment.id)
    return bool(found)


def provide_work_pool(name: str) -> None:
    """Create a work pool for processes, unless there is a work pool of that name.

    Args:
        name: Its name.
    """
    with api_client() as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            # It takes its time to import, and most who look at schedules make no pool.
            from prefect.workers.process import ProcessWorker

            template = ProcessWorker.get_default_base_job_template()
            pool = WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template)
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(pool)


def has_worker(work_pool: str) -> bool:
    """Return whether a worker waits for runs of a work pool.

    Args:
        work_pool: Its name.
    """
    with api_client() as client:
        return any(
            worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(work_pool)
        )
