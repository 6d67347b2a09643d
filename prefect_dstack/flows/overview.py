"""What is wanted of the services, beside what truly runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.record import Deploying, ServiceRecord
from prefect_dstack.errors import NotFoundError, PrefectDstackError
from prefect_dstack.flows.goals import runtimes_of
from prefect_dstack.flows.promotion import how_to_decide
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.tasks import connections, gateway_places, observation
from prefect_dstack.tasks.observation import Found
from prefect_dstack.tasks.records import all_records, load_record
from prefect_dstack.tasks.runs import has_died, is_paused

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
    state: Literal[
        "serving",
        "degraded",
        "down",
        "deploying",
        "waiting",
        "stopping",
        "stopped",
        "failed",
        "unfinished",
    ] = Field(description="How the service is; `waiting`: for a person to promote a canary.")
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
    state, routed = _at_gateway(record, problems)
    sight, twins = seen.without_twins(state)
    problems += [f"{twin.replica.name} has a twin on {twin.instance.name}" for twin in twins]
    replicas = [_replica(found, routed) for found in sight.found]
    expected = _expected(record)
    serving = sum(r.name in expected and r.state == "running" and r.routed for r in replicas)
    missing = sorted(expected - {replica.name for replica in replicas})
    if missing:  # Otherwise nothing of this service can have been on a machine that is gone.
        problems += [f"{name} is gone: {reason}" for name, reason in seen.unreachable.items()]
    problems += [f"{name} is missing" for name in missing]
    problems += [f"{r.name} is {r.state}" for r in replicas if r.state != "running"]
    there = [replica.name for replica in replicas] + [stamp.name for _, stamp in sight.empty]
    left = [name for name in there if name not in expected]
    if record.deploying is not None and not has_died(record.deploying):
        condition = _under_way(record, record.deploying, problems)
    elif record.active is None:
        condition = _off_the_air(record, left, problems)
    else:
        condition = "serving" if serving >= len(expected) else "degraded" if serving else "down"
        if left or record.deploying is not None:
            problems += [f"{name} is left of a deployment that ended before it was done" for name in left]
            problems += ["prefect-dstack reconcile, or the next apply, undoes that deployment"]
    return ServiceOverview.model_validate(
        {
            "name": record.name,
            "revision": record.active,
            "state": condition,
            "wanted": len(expected),
            "serving": serving,
            "url": None if record.endpoint is None else record.endpoint.url,
            "gateway": record.gateway,
            "replicas": [replica.model_dump() for replica in replicas],
            "problems": problems,
        }
    )


def _at_gateway(record: ServiceRecord, problems: list[str]) -> tuple[GatewayState | None, set[str]]:
    """Read what the gateway of a service routes, and to which of its replicas requests get through."""
    try:
        state = gateway_places.state(record.gateway)
        running = gateway_places.runs(record.gateway)
    except PrefectDstackError as error:
        problems.append(str(error))
        return None, set()
    if not running:
        if record.active is not None:
            problems.append(f"gateway {record.gateway} does not run: prefect-dstack reconcile starts it")
        return state, set()
    route = None if state is None else state.routes.get(record.name)
    routed = set() if route is None else {r.name for r in route.replicas.values() if r.state == "ready"}
    for name, check in gateway_places.unusable(record.gateway, record.name).items() if routed else ():
        if name in routed:
            routed.discard(name)
            problems.append(f"{name} gets no requests, the gateway's check of it fails: {check}")
    return state, routed


def _expected(record: ServiceRecord) -> set[str]:
    active = record.active_revision
    loaded = None if active is None else load_configuration(active.configuration, name=record.name)
    if active is None or not isinstance(loaded, ServiceConfiguration):
        return set()
    return {f"{record.name}-{active.replicas_of}-{number}" for number in range(loaded.replica_count)}


def _under_way(record: ServiceRecord, deploying: Deploying, problems: list[str]) -> str:
    if is_paused(deploying.flow_run):
        problems.append(f"{record.name}@{deploying.revision} waits: {how_to_decide(record)}")
        return "waiting"
    return "deploying" if deploying.revision is not None else "stopping"


def _off_the_air(record: ServiceRecord, left: list[str], problems: list[str]) -> str:
    failed = bool(record.revisions) and record.revisions[-1].outcome == "failed"
    condition = "failed" if failed and not record.taken_off else "stopped"
    problems += [record.revisions[-1].reason] if condition == "failed" else []
    # Whatever was to end and has not may cost money, and may answer.
    if left or record.deploying is not None:
        condition = "unfinished"
        problems += [f"{name} is left" for name in left]
        problems += ["stop it again, or run prefect-dstack reconcile"]
    return condition


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
