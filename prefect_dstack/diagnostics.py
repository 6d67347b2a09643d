"""What this machine has and lacks for deploying services."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from prefect_dstack.errors import HostError, OrchestratorError, PrefectDstackError

__all__ = ["Diagnosis", "diagnose"]

# How many deployments are looked at: one page of Prefect's API.
DEPLOYMENTS = 200
# A scheduler sees new and changed deployments every few seconds.
SCHEDULER_DELAY = timedelta(seconds=15)
# Earlier ones fail with it in each round: "Can't evaluate bulk DML statement".
FIRST_WITH_SQLALCHEMY_2_1 = (3, 9)


@dataclass(frozen=True)
class Diagnosis:
    """What one look found.

    Attributes:
        level: `ok`; `missing`: only something optional is not there; `problem`: the main job cannot be done.
        summary: What was looked at.
        detail: What was found.
        resolution: What to do about it; empty if nothing.
    """

    level: Literal["ok", "missing", "problem"]
    summary: str
    detail: str
    resolution: str = ""


def diagnose() -> list[Diagnosis]:
    """Check everything that a deployment on this machine may need.

    Returns:
        The findings.
    """
    prefect = _prefect()
    findings = [_python(), _settings(), _haproxy(), _shell(), _docker(), prefect]
    return [*findings, *_of_api()] if prefect.level == "ok" else findings


def _python() -> Diagnosis:
    detail = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return Diagnosis("ok", "Python", detail)


def _settings() -> Diagnosis:
    from prefect_dstack.settings import settings

    values = settings().model_dump()
    home = settings().home
    there = next(place for place in (home, *home.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Diagnosis(
            "problem", "settings", f"home {home} cannot be made", "set PREFECT_DSTACK_HOME to another"
        )
    return Diagnosis("ok", "settings", ", ".join(f"{name} {value}" for name, value in values.items()))


def _haproxy() -> Diagnosis:
    from prefect_dstack.gateways.local import haproxy_binary

    try:
        return Diagnosis("ok", "HAProxy, for the gateway of this machine", str(haproxy_binary()))
    except PrefectDstackError as error:
        return Diagnosis("problem", "HAProxy, for the gateway of this machine", "not found", str(error))


def _shell() -> Diagnosis:
    shell = shutil.which("bash") or shutil.which("sh")
    if shell is None:
        return Diagnosis("problem", "a shell, for services without an image", "not found", "install bash")
    return Diagnosis("ok", "a shell, for services without an image", shell)


def _docker() -> Diagnosis:
    from prefect_dstack.hosts.local_machine import LocalMachine

    try:
        version = LocalMachine().docker().version()["Version"]
    except HostError as error:
        return Diagnosis(
            "missing", "a Docker Engine, for services with an image", "does not answer", str(error)
        )
    return Diagnosis("ok", "a Docker Engine, for services with an image", version)


def _prefect() -> Diagnosis:
    from prefect.settings import get_current_settings

    from prefect_dstack.api import check, local_server_url

    configured = get_current_settings().api.url
    if configured is None:
        url = local_server_url()
        return Diagnosis(
            "ok", "a Prefect API", url or "none is configured; a local one starts with the first deployment"
        )
    try:
        check(configured)
    except OrchestratorError as error:
        detail, _, remedy = str(error).removeprefix("the Prefect API at ").partition("; ")
        return Diagnosis("problem", "a Prefect API", detail, remedy)
    return Diagnosis("ok", "a Prefect API", configured)


def _of_api() -> Iterator[Diagnosis]:
    """Check what only a running Prefect API can show; none is started for it."""
    from prefect.settings import get_current_settings

    from prefect_dstack.api import connect, local_server_url

    if get_current_settings().api.url is None and local_server_url() is None:
        return
    connect(lambda _: None)
    yield _scheduler()
    yield _controller()
    yield from _bundle_storage()
    yield from _backends()


def _scheduler() -> Diagnosis:
    """Compare the deployments that have a schedule with those for which runs are planned."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterNextScheduledStartTime,
    )

    summary = "the scheduler of the Prefect API"
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        version = client.api_version()
        scheduled = [
            deployment
            for deployment in client.read_deployments(limit=DEPLOYMENTS)
            if not deployment.paused
            and any(schedule.active for schedule in deployment.schedules)
            and (deployment.updated is None or now - deployment.updated > SCHEDULER_DELAY)
        ]
        planned = {
            deployment.id
            for deployment in scheduled
            if client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
                    next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(after_=now),
                ),
                limit=1,
            )
        }
    if scheduled and not planned:
        noun = "deployment" if len(scheduled) == 1 else "deployments"
        detail = f"has planned no run for any of {len(scheduled)} {noun} with an active schedule"
        return Diagnosis("problem", summary, detail, _scheduler_remedy(version))
    if not scheduled:
        return Diagnosis("ok", summary, "no deployment has had an active schedule for long enough to tell")
    return Diagnosis("ok", summary, f"{len(planned)} of {len(scheduled)} deployments have planned runs")


def _scheduler_remedy(version: str) -> str:
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if release and release < FIRST_WITH_SQLALCHEMY_2_1:
        return (
            f"the server is Prefect {version}, which plans no runs with SQLAlchemy 2.1 or later: "
            "install prefect>=3.9.1 where it runs, and start it again"
        )
    return (
        "read the server's log; where it runs, install prefect>=3.9.1 and whenever>=0.11, and start it again"
    )


def _controller() -> Diagnosis:
    from prefect_dstack.store.controllers import HOW_TO_START, known_controllers
    from prefect_dstack.store.records import readable_records

    summary = "a controller, which scales, wakes and repairs services"
    if leaders := known_controllers():
        return Diagnosis("ok", summary, ", ".join(f"watches on {leader['where']}" for leader in leaders))
    waiting = [record.name for record in readable_records()[0] if record.needs_controller]
    whose = f"; {', '.join(waiting)} {'needs' if len(waiting) == 1 else 'need'} one" if waiting else ""
    return Diagnosis("missing", summary, f"no controller is watching{whose}", f"start it: {HOW_TO_START}")


def _bundle_storage() -> Iterator[Diagnosis]:
    """Have the storage for the files of revisions, if the settings name one, take a small file."""
    from prefect_dstack.settings import settings
    from prefect_dstack.store.bundle_storage import PrefectBundleStorage

    slug = settings().bundle_storage
    if slug is None:
        return
    summary = "the storage for the files of revisions"
    try:
        where = PrefectBundleStorage(slug).check()
    except PrefectDstackError as error:
        yield Diagnosis("problem", summary, f"{slug} cannot be used", str(error))
    else:
        yield Diagnosis("ok", summary, f"{slug}: {where}")


def _backends() -> Iterator[Diagnosis]:
    """Have every configured backend check its own access, without changing anything."""
    from prefect_dstack.backends.base import ChecksItself
    from prefect_dstack.store.sources import resolve_infrastructure

    for backend in resolve_infrastructure().backends.values():
        if isinstance(backend, ChecksItself):
            for check in backend.checks():
                level: Literal["ok", "problem"] = "ok" if check.passed else "problem"
                yield Diagnosis(level, check.subject, check.detail, check.resolution)
