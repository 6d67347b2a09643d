"""What is wanted of the services, beside what truly runs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.record import Deploying, PendingApproval, ServiceRecord
from prefect_dstack.errors import NotFoundError, PrefectDstackError
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.approval import how_to_approve
from prefect_dstack.services.location import is_elsewhere
from prefect_dstack.services.promotion import how_to_decide
from prefect_dstack.store.records import readable_records
from prefect_dstack.store.runs import has_died, is_paused
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["ReplicaOverview", "ServiceOverview", "overview"]

PARALLEL_SERVICES = 16


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

    kind: Literal["service"] = Field(default="service", description="What it is.")
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
        "elsewhere",
        "unknown",
    ] = Field(
        description="How the service is; `waiting`: for a person to approve a revision or promote a canary; "
        "`elsewhere`: it runs on another machine, where alone it can be seen; `unknown`: its record cannot "
        "be read."
    )
    revisions: list[int] = Field(default_factory=list, description="The revisions that are kept.")
    wanted: int = Field(description="How many replicas there shall be.")
    serving: int = Field(description="How many there are that get requests.")
    url: str | None = Field(description="Where it answers.")
    gateway: str = Field(description="The gateway in front of it.")
    location: str | None = Field(
        default=None, description="The machine on which alone it can be changed; None: any."
    )
    replicas: list[ReplicaOverview] = Field(description="The replicas that were found.")
    problems: list[str] = Field(description="What is not as it should be.")
    approval: PendingApproval | None = Field(
        default=None, description="The revision that waits for approval, with its private URL."
    )


@shared_connections()
def overview(names: Sequence[str] = ()) -> list[ServiceOverview]:
    """Look at services, several at a time.

    Args:
        names: Which; none: all.

    Returns:
        The services by name.

    Raises:
        NotFoundError: If there is no service of such a name.
    """
    records, problems = readable_records()
    known = [*(record.name for record in records), *problems]
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"{name}: there is no such service; there are: {', '.join(sorted(known)) or 'none'}"
            )
    if names:
        records = [record for record in records if record.name in names]
        problems = {name: problem for name, problem in problems.items() if name in names}
    infrastructure = resolve_infrastructure()
    with ThreadPoolExecutor(PARALLEL_SERVICES) as pool:
        looks = [pool.submit(copy_context().run, _overview_of, record, infrastructure) for record in records]
        found = [look.result() for look in looks]
    unreadable = [
        ServiceOverview(
            name=name,
            revision=None,
            state="unknown",
            wanted=0,
            serving=0,
            url=None,
            gateway="",
            replicas=[],
            problems=[problem],
        )
        for name, problem in problems.items()
    ]
    return sorted([*found, *unreadable], key=lambda service: service.name)


def _overview_of(record: ServiceRecord, infrastructure: Infrastructure) -> ServiceOverview:
    if is_elsewhere(record, infrastructure.here):
        return _summary(record, "elsewhere", [], [f"runs on {record.location}"], serving=0)
    problems: list[str] = []
    seen = infrastructure.observe(record.name, record.runtimes)
    problems += [f"{name} cannot be asked: {reason}" for name, reason in seen.unlisted.items()]
    state, routed = _at_gateway(record, infrastructure, problems)
    observation, duplicates = seen.without_duplicates(state)
    problems += [f"{it.replica.name} has a duplicate on {it.instance.name}" for it in duplicates]
    replicas = [_replica(found, routed) for found in observation.found]
    expected = _expected(record)
    serving = sum(r.name in expected and r.state == "running" and r.routed for r in replicas)
    missing = sorted(expected - {replica.name for replica in replicas})
    if missing:  # Otherwise nothing of this service can have been on a machine that is gone.
        problems += [f"{name} is gone: {reason}" for name, reason in seen.unreachable.items()]
    problems += [f"{name} is missing" for name in missing]
    problems += [f"{r.name} is {r.state}" for r in replicas if r.state != "running"]
    there = [replica.name for replica in replicas] + [stamp.name for _, stamp in observation.empty]
    pending = record.pending()
    waiting = None if pending is None else pending.revision
    left = [name for name in there if name not in expected and name.rsplit("-", 2)[1] != str(waiting)]
    if record.deploying is not None and not has_died(record.deploying):
        condition = _under_way(record, record.deploying, problems)
    elif record.active is None and pending is None:
        condition = _not_serving(record, left, problems)
    else:
        condition = "serving" if serving >= len(expected) else "degraded" if serving else "down"
        if left or record.deploying is not None:
            problems += [f"{name} is left of a deployment that ended before it was done" for name in left]
            problems += ["prefect-dstack reconcile, or the next apply, undoes that deployment"]
    if pending is not None:
        condition = "waiting" if condition == "serving" else condition
        problems.append(f"{record.name}@{pending.revision} waits: {how_to_approve(record.name)}")
        ready = [r for r in replicas if r.name.rsplit("-", 2)[1] == str(waiting) and r.state == "running"]
        problems += (
            [] if ready else [f"no replica of {record.name}@{waiting} runs; approve starts them again"]
        )
    return _summary(record, condition, replicas, problems, serving=serving)


def _summary(
    record: ServiceRecord,
    condition: str,
    replicas: list[ReplicaOverview],
    problems: list[str],
    *,
    serving: int,
) -> ServiceOverview:
    return ServiceOverview.model_validate(
        {
            "name": record.name,
            "revision": record.active,
            "revisions": [revision.number for revision in record.revisions],
            "state": condition,
            "wanted": record.wanted_replicas,
            "serving": serving,
            "url": None if record.endpoint is None else record.endpoint.url,
            "gateway": record.gateway,
            "location": None if record.location is None else str(record.location),
            "replicas": [replica.model_dump() for replica in replicas],
            "problems": problems,
            "approval": record.pending(),
        }
    )


def _at_gateway(
    record: ServiceRecord, infrastructure: Infrastructure, problems: list[str]
) -> tuple[GatewayState | None, set[str]]:
    """Read what the gateway of a service routes, and to which of its replicas requests get through."""
    if record.active is None and infrastructure.find_gateway(record.gateway) is None:
        return None, set()
    try:
        gateway = infrastructure.gateway(record.gateway)
        state = gateway.state()
        running = gateway.running()
    except PrefectDstackError as error:
        problems.append(str(error))
        return None, set()
    if not running:
        if record.active is not None:
            problems.append(f"gateway {record.gateway} does not run: prefect-dstack reconcile starts it")
        return state, set()
    route = None if state is None else state.routes.get(record.name)
    routed = set() if route is None else {r.name for r in route.replicas.values() if r.state == "ready"}
    for name, check in gateway.unusable(record.name).items() if routed else ():
        if name in routed:
            routed.discard(name)
            problems.append(f"{name} gets no requests, the gateway's check of it fails: {check}")
    return state, routed


def _expected(record: ServiceRecord) -> set[str]:
    active = record.active_revision
    if active is None:
        return set()
    return {f"{record.name}-{active.replicas_of}-{number}" for number in range(record.wanted_replicas)}


def _under_way(record: ServiceRecord, deploying: Deploying, problems: list[str]) -> str:
    if is_paused(deploying.flow_run):
        problems.append(f"{record.name}@{deploying.revision} waits: {how_to_decide(record)}")
        return "waiting"
    return "deploying" if deploying.revision is not None else "stopping"


def _not_serving(record: ServiceRecord, left: list[str], problems: list[str]) -> str:
    failed = bool(record.revisions) and record.revisions[-1].outcome == "failed"
    condition = "failed" if failed and not record.taken_off else "stopped"
    problems += [record.revisions[-1].reason] if condition == "failed" else []
    # Whatever was to end and has not may cost money, and may answer.
    if left or record.deploying is not None:
        condition = "unfinished"
        problems += [f"{name} is left" for name in left]
        problems += ["stop it again, or run prefect-dstack reconcile"]
    return condition


def _replica(found: FoundReplica, routed: set[str]) -> ReplicaOverview:
    return ReplicaOverview(
        name=found.replica.name,
        instance=found.instance.name,
        runtime=found.replica.runtime,
        state=found.status.state,
        restarts=found.status.restarts,
        routed=found.replica.name in routed,
    )
