"""What a schedule starts: services, tasks and development environments whose configuration has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from prefect_dstack.api import connected
from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.configurations import (
    DevEnvironmentConfiguration,
    ServiceConfiguration,
    TaskConfiguration,
)
from prefect_dstack.configurations.sources import open_source
from prefect_dstack.domain.schedules import weekdays_named
from prefect_dstack.errors import ConfigurationError, ConflictError, NotFoundError
from prefect_dstack.flows.deploy import deploy_service
from prefect_dstack.flows.run_dev_environment import run_dev_environment
from prefect_dstack.flows.run_task import run_task
from prefect_dstack.services.loading import load_of_kind
from prefect_dstack.settings import settings
from prefect_dstack.store.schedules import (
    SCHEDULED,
    ScheduleOverview,
    all_schedules,
    provide_work_pool,
    remove_schedule,
)

__all__ = [
    "acreate_schedule",
    "adelete_schedule",
    "alist_schedules",
    "create_schedule",
    "delete_schedule",
    "list_schedules",
]

Scheduled = ServiceConfiguration | TaskConfiguration | DevEnvironmentConfiguration

STARTED_BY: Mapping[type[Scheduled], Flow[..., Any]] = {
    ServiceConfiguration: deploy_service,
    TaskConfiguration: run_task,
    DevEnvironmentConfiguration: run_dev_environment,
}


@connected
def create_schedule(
    configuration: str | Path | dict[str, Any],
    name: str | None = None,
    profile: str | None = None,
    args: list[str] | None = None,
    directory: str | Path | None = None,
) -> ScheduleOverview:
    """Start what a configuration describes whenever its `schedule` says so; nothing is started now.

    It becomes a Prefect deployment with a cron schedule in the work pool of the setting `schedule_work_pool`,
    in the place of the one that it had. A file is read anew by each run, on the worker's machine.

    Args:
        configuration: The path of a `*.dstack.yml` with a `schedule`, YAML text or a mapping.
        name: The name of the service or run; default: the configuration's.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.

    Returns:
        What is started, and when.

    Raises:
        ConfigurationError: If it has no schedule, or cannot be accepted.
        ConflictError: If something else of its name is on a schedule.

    Example:
        ```python
        from prefect_dstack import create_schedule

        create_schedule("train.dstack.yml")
        ```
    """
    loaded: Scheduled = load_of_kind(
        tuple(STARTED_BY), configuration, name=name, profile=profile, args=args, directory=directory
    )
    schedule = loaded.schedule
    if schedule is None:
        raise ConfigurationError(
            "is missing; add 'schedule: {cron: 0 8 * * mon-fri}'", source=loaded.source_name, key="schedule"
        )
    for known in all_schedules():
        if known.name == loaded.name and known.kind != loaded.type:
            raise ConflictError(
                f"{known.name}: a {known.kind} of that name is on a schedule; choose another name, or end it "
                f"with: prefect-dstack stop {known.name}"
            )
    is_file = open_source(configuration).is_file
    given = {
        "configuration": str(Path(configuration).absolute()) if is_file else configuration,  # type: ignore[arg-type]
        "name": name,
        "profile": profile,
        "args": args,
        "directory": None if is_file and directory is None else str(loaded.directory),
    }
    pool = settings().schedule_work_pool
    provide_work_pool(pool)
    deployment = RunnerDeployment.from_flow(
        STARTED_BY[type(loaded)],
        name=loaded.name or "",
        description=f"Made by the schedule of {loaded.source_name}.",
        parameters={key: value for key, value in given.items() if value is not None},
        schedules=[
            CronSchedule(cron=cron, timezone="UTC", day_or=False)
            for cron in dict.fromkeys(map(weekdays_named, schedule.cron))
        ],
        tags=[SCHEDULED, f"{loaded.type}:{loaded.name}"],
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.apply()
    (made,) = [found for found in all_schedules() if found.name == loaded.name]
    return made


@connected
def list_schedules() -> list[ScheduleOverview]:
    """List what schedules of configurations start.

    Returns:
        The schedules, by the name of what they start.
    """
    return all_schedules()


@connected
def delete_schedule(name: str) -> None:
    """Start something no more; what runs of it goes on.

    Args:
        name: What the schedule starts.

    Raises:
        NotFoundError: If nothing of that name is on a schedule.
    """
    if not remove_schedule(name):
        known = ", ".join(found.name for found in all_schedules()) or "none"
        raise NotFoundError(f"{name}: is not on a schedule; there are: {known}")


acreate_schedule = asynchronous(create_schedule)
alist_schedules = asynchronous(list_schedules)
adelete_schedule = asynchronous(delete_schedule)
