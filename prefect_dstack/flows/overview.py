"""What is wanted of the services, beside what truly runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.errors import NotFoundError, PrefectDstackError
from prefect_dstack.flows.goals import runtimes_of
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.services.record import ServiceRecord
from prefect_dstack.tasks import connections, gateway_places, observation
from prefect_dstack.tasks.observation import Found
from prefect_dstack.tasks.records import all_records, load_record
from prefect_dstack.tasks.runs import has_died

__all__ = ["ReplicaOverview", "ServiceOverview", "overview", "read_logs"]


class ReplicaOverview(BaseModel):
    """One replica as it was found."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the replica.")
    instance: str = Field(description="The machine it runs on.")
    runtime: str = Field(description="What runs it.")
    state: str = Field(description="How it is.")
    restarts: int = Field(description="How often it was restarted after it ended by itself.")
    routed: bool = Field(description="Whether it gets requests.")


class ServiceOverview(BaseModel):
    """One service: wanted, and actual."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the service.")
    revision: int | None = Field(description="The revision that shall serve.")
    state: Literal["serving", "degraded", "down", "deploying", "stopped", "failed", "unfinished"] = Field(
        description="How the service is."
    )
    wanted: int = Field(description="How many replicas there shall be.")
    serving: int = Field(description="How many there are that get requests.")
    url: str | None = Field(description="Where it answers.")
    gateway: str = Field(description="The gateway in front of it.")
    replicas: list[ReplicaOverview] = Field(description="The replicas that were found.")
    problems: list[str] = Field(description="What is not as it should be.")


@shared_connections()
def overview() -> list[ServiceOverview]:
    """Look at every service.

    Returns:
        The services by name.
    """
    return [_overview_of(record) for record in all_records()]


def _overview_of(record: ServiceRecord) -> ServiceOverview:
    problems: list[str] = []
    runtimes = runtimes_of(record)
    seen = observation.look(record.name, observation.instances_of(record.name, runtimes), runtimes)
    problems += [f"{name} cannot be asked: {reason}" for name, reason in seen.unlisted.items()]
    try:
        state = gateway_places.state(record.gateway)
    except PrefectDstackError as error:
        state = None
        problems.append(str(error))
    sight, twins = seen.without_twins(state)
    problems += [f"{twin.replica.name} has a twin on {twin.instance.name}" for twin in twins]
    route = None if state is None else state.routes.get(record.name)
    routed = set() if route is None else {r.name for r in route.replicas.values() if r.state == "ready"}
    if routed:
        for name, check in gateway_places.unusable(record.gateway, record.name).items():
            routed.discard(name)
            problems.append(f"{name} gets no requests, the gateway's check of it fails: {check}")
    active = record.active_revision
    wanted = 0 if active is None else _replica_count(record, active.configuration)
    replicas = [_replica(found, routed) for found in sight.found]
    expected = (
        {f"{record.name}-{active.replicas_of}-{number}" for number in range(wanted)}
        if active is not None
        else set()
    )
    serving = sum(r.name in expected and r.state == "running" and r.routed for r in replicas)
    missing = sorted(expected - {replica.name for replica in replicas})
    if missing:  # Otherwise nothing of this service can have been on a machine that is gone.
        problems += [f"{name} is gone: {reason}" for name, reason in seen.unreachable.items()]
    problems += [f"{name} is missing" for name in missing]
    problems += [f"{r.name} is {r.state}" for r in replicas if r.state != "running"]
    if record.deploying is not None and not has_died(record.deploying):
        condition = "deploying"
    elif active is None:
        failed = bool(record.revisions) and record.revisions[-1].outcome == "failed"
        condition = "failed" if failed and not record.taken_off else "stopped"
        problems += [record.revisions[-1].reason] if condition == "failed" else []
        # Whatever was to end and has not may cost money, and may answer.
        left = [replica.name for replica in replicas] + [stamp.name for _, stamp in sight.empty]
        if left or record.deploying is not None:
            condition = "unfinished"
            problems += [f"{replica} is left" for replica in left]
            problems += ["stop it again, or run prefect-dstack reconcile"]
    else:
        condition = "serving" if serving >= wanted else "degraded" if serving else "down"
    return ServiceOverview.model_validate(
        {
            "name": record.name,
            "revision": record.active,
            "state": condition,
            "wanted": wanted,
            "serving": serving,
            "url": None if record.endpoint is None else record.endpoint.url,
            "gateway": record.gateway,
            "replicas": [replica.model_dump() for replica in replicas],
            "problems": problems,
        }
    )


def _replica_count(record: ServiceRecord, configuration: dict[str, object]) -> int:
    loaded = load_configuration(configuration, name=record.name)
    return loaded.replica_count if isinstance(loaded, ServiceConfiguration) else 0


def _replica(found: Found, routed: set[str]) -> ReplicaOverview:
    return ReplicaOverview(
        name=found.replica.name,
        instance=found.instance.name,
        runtime=found.replica.runtime,
        state=found.status.state,
        restarts=found.status.restarts,
        routed=found.replica.name in routed,
    )


def read_logs(
    name: str, *, replica: int | None = None, tail: int | None = None, follow: bool = False
) -> Iterator[str]:
    """Read what the replicas of a service write.

    Args:
        name: The service.
        replica: Only this replica, counted from 0; None: all.
        tail: Only so many lines from the end of each; None: all that is kept.
        follow: Go on with what they write from now.

    Yields:
        Lines; with several replicas, each starts with the name of its own.

    Raises:
        NotFoundError: If there is no such service, or no such replica.
    """
    record = load_record(name)
    runtimes = runtimes_of(record)
    sight = observation.look(name, observation.instances_of(name, runtimes), runtimes)
    found = [item for item in sight.found if replica is None or item.replica.stamp.replica == replica]
    if not found:
        raise NotFoundError(
            f"{name}: no replica runs" if replica is None else f"{name}: there is no replica {replica}"
        )
    if len(found) == 1:
        yield from _logs(found[0], tail, follow)
        return
    if not follow:
        for item in found:
            yield from (f"{item.replica.name}: {line}" for line in _logs(item, tail, follow))
        return
    yield from _together(found, tail)


def _logs(found: Found, tail: int | None, follow: bool) -> Iterator[str]:
    runtime = connections.runtime(found.replica.runtime)
    return runtime.logs(connections.machine(found.instance), found.replica, tail=tail, follow=follow)


def _together(found: list[Found], tail: int | None) -> Iterator[str]:
    lines: queue.Queue[str | None] = queue.Queue(maxsize=1000)

    def read(item: Found) -> None:
        try:
            for line in _logs(item, tail, follow=True):
                lines.put(f"{item.replica.name}: {line}")
        finally:
            lines.put(None)

    for item in found:
        threading.Thread(target=read, args=(item,), daemon=True).start()
    ended = 0
    while ended < len(found):
        line = lines.get()
        if line is None:
            ended += 1
        else:
            yield line
