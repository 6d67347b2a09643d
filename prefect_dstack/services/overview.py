"""What is wanted of the services, beside what actually runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.record import Deploying, PendingApproval, ServiceRecord
from prefect_dstack.errors import NotFoundError, PrefectDstackError
from prefect_dstack.gateways.observation import ReplicaHealth
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.costs import hourly_price, over_budget
from prefect_dstack.services.location import is_elsewhere
from prefect_dstack.services.promotion import how_to_approve, how_to_decide
from prefect_dstack.store.controllers import known_controllers
from prefect_dstack.store.records import readable_records
from prefect_dstack.store.runs import has_died, is_paused
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["ReplicaOverview", "ServiceOverview", "overview"]

PARALLEL_SERVICES = 16


class ReplicaFigures(BaseModel):
    """What a replica has answered since the last reload of its gateway."""

    model_config = ConfigDict(frozen=True)

    requests: int = Field(description="Answers that it began.")
    failed: int = Field(description="Those with a status of 500 or above, and requests without an answer.")
    first_byte: float = Field(description="Mean seconds to the first byte of the last 1,024 answers.")
    p95: float | None = Field(description="Seconds within which 95 % of them began; None without any.")


class ReplicaOverview(BaseModel):
    """One replica as it was found."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the replica.")
    group: str = Field(default="", description="The group that it is of; empty where there are none.")
    instance: str = Field(description="The machine it runs on.")
    runtime: str = Field(description="What runs it.")
    state: str = Field(description="How it is.")
    restarts: int = Field(description="How often it was restarted after it ended by itself.")
    routed: bool = Field(description="Whether it gets requests.")
    started_at: datetime | None = Field(default=None, description="When it was last started.")
    replaced: int = Field(
        default=0, description="How often it was replaced lately because it had stopped answering."
    )
    check: str = Field(default="", description="The gateway's last check of it, in its own words.")
    price: float | None = Field(
        default=None, description="What its machine costs, in US dollars an hour; None: not known."
    )
    figures: ReplicaFigures | None = Field(
        default=None, description="What it has answered; only where one service is looked at closely."
    )


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
    pinned: bool = Field(default=False, description="Whether somebody has pinned that number by `scale`.")
    serving: int = Field(description="How many there are that get requests.")
    url: str | None = Field(description="Where it answers.")
    gateway_openai_base_url: str | None = Field(
        default=None, description="Where the models of all services of its gateway are, if it serves one."
    )
    gateway: str = Field(description="The gateway in front of it.")
    location: str | None = Field(
        default=None, description="The machine on which alone it can be changed; None: any."
    )
    replicas: list[ReplicaOverview] = Field(description="The replicas that were found.")
    price: float = Field(
        default=0.0,
        description="What its machines cost together, in US dollars an hour, as far as that is known.",
    )
    problems: list[str] = Field(description="What is not as it should be.")
    resolutions: list[str] = Field(default_factory=list, description="What to do about it.")
    needs_controller: bool = Field(
        default=False,
        description="Whether it scales, wakes or is repaired only while a controller watches.",
    )
    watched: bool = Field(default=False, description="Whether a controller watches the services.")
    approval: PendingApproval | None = Field(
        default=None, description="The revision that waits for approval, with its private URL."
    )


@shared_connections()
def overview(names: Sequence[str] = (), *, closely: bool = False) -> list[ServiceOverview]:
    """Inspect services, several at a time.

    Args:
        names: Which; none: all.
        closely: Whether gateways are also asked what each replica has answered.

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
    watched = bool(known_controllers())
    with ThreadPoolExecutor(PARALLEL_SERVICES) as pool:
        looks = [
            pool.submit(copy_context().run, _overview_of, record, infrastructure, closely=closely)
            for record in records
        ]
        found = [look.result().model_copy(update={"watched": watched}) for look in looks]
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
            watched=watched,
        )
        for name, problem in problems.items()
    ]
    return sorted([*found, *unreadable], key=lambda service: service.name)


def _overview_of(record: ServiceRecord, infrastructure: Infrastructure, *, closely: bool) -> ServiceOverview:
    if is_elsewhere(record, infrastructure.here):
        return _summary(record, "elsewhere", [], [f"runs on {record.location}"], serving=0)
    problems: list[str] = []
    seen = infrastructure.observe(record.name, record.runtimes)
    problems += [f"{name} cannot be asked: {reason}" for name, reason in seen.unlisted.items()]
    state, routed, health = _at_gateway(record, infrastructure, problems)
    figures = _figures(record, infrastructure) if closely and routed else {}
    observation, duplicates = seen.without_duplicates(state)
    problems += [f"{it.replica.name} has a duplicate on {it.instance.name}" for it in duplicates]
    replicas = [_replica(found, routed, record, health, figures) for found in observation.found]
    expected = record.wanted_names
    serving = sum(r.name in expected and r.state == "running" and r.routed for r in replicas)
    missing = sorted(expected - {replica.name for replica in replicas})
    if missing:  # Otherwise nothing of this service can have been on a machine that is gone.
        problems += [f"{name} is gone: {reason}" for name, reason in seen.unreachable.items()]
    problems += [f"{name} is missing" for name in missing]
    problems += [
        f"{r.name} {'has exited' if r.state == 'exited' else f'is {r.state}'}"
        for r in replicas
        if r.state != "running"
    ]
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
    # What was created for a replica that is not there costs no less.
    price = hourly_price([found.instance for found in seen.found] + [instance for instance, _ in seen.empty])
    if excess := over_budget(record, price):
        problems.append(excess)
    summary = _summary(record, condition, replicas, problems, serving=serving)
    return summary.model_copy(update={"price": price, "resolutions": _resolutions(record, replicas, missing)})


def _resolutions(record: ServiceRecord, replicas: Sequence[ReplicaOverview], missing: list[str]) -> list[str]:
    """Return what to do about replicas that do not serve."""
    found = ["prefect-dstack reconcile starts what is missing"] if missing else []
    for replica in replicas:
        number = replica.name.rpartition("-")[2]
        log = f"prefect-dstack logs {record.name} --replica {number}"
        if replica.name not in record.wanted_names:
            continue
        if replica.state != "running":
            found.append(f"{log} shows why {replica.name} ended")
        elif not replica.routed and replica.check:
            found.append(f"{log} shows what {replica.name} does")
    active = record.active_revision
    hangs = any(replica.state == "running" and replica.check and not replica.routed for replica in replicas)
    if hangs and active is not None and active.configuration.get("restart_after") is None:
        found.append("restart_after in the file has such replicas replaced")
    return found


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
            "pinned": record.desired is not None and record.desired.pinned,
            "serving": serving,
            "url": None if record.endpoint is None else record.endpoint.url,
            "gateway_openai_base_url": (
                None if record.endpoint is None else record.endpoint.gateway_openai_base_url
            ),
            "gateway": record.gateway,
            "location": None if record.location is None else str(record.location),
            "replicas": [replica.model_dump() for replica in replicas],
            "problems": problems,
            "needs_controller": record.needs_controller,
            "approval": record.pending(),
        }
    )


def _at_gateway(
    record: ServiceRecord, infrastructure: Infrastructure, problems: list[str]
) -> tuple[GatewayState | None, set[str], Mapping[str, ReplicaHealth]]:
    """Read what the gateway of a service routes, and to which of its replicas requests get through."""
    if record.active is None and infrastructure.find_gateway(record.gateway) is None:
        return None, set(), {}
    try:
        gateway = infrastructure.gateway(record.gateway)
        state = gateway.state()
        running = gateway.running()
    except PrefectDstackError as error:
        problems.append(str(error))
        return None, set(), {}
    if not running:
        if record.active is not None:
            problems.append(f"gateway {record.gateway} does not run: prefect-dstack reconcile starts it")
        return state, set(), {}
    route = None if state is None else state.routes.get(record.name)
    routed = set() if route is None else {r.name for r in route.replicas.values() if r.state == "ready"}
    health = gateway.health(record.name) if routed else {}
    for name, it in health.items():
        if name in routed and it.status == "DOWN":
            routed.discard(name)
            problems.append(f"{name} gets no requests, the gateway's check of it fails: {it.check}")
    return state, routed, health


def _figures(record: ServiceRecord, infrastructure: Infrastructure) -> dict[str, ReplicaFigures]:
    """Ask the gateway what each replica has answered; nothing if it does not say."""
    control = infrastructure.gateway(record.gateway).control
    try:
        counted, samples = control.statistics(record.name), control.samples()[0]
    except PrefectDstackError:
        return {}
    rows = {
        name: row for one in samples if one.current for name, row in one.replicas.get(record.name, {}).items()
    }
    return {
        name: ReplicaFigures(
            requests=it.requests,
            failed=it.server_errors + it.response_errors,
            first_byte=rows[name].first_byte,
            p95=None if it.p95 is None else it.p95 / 1000,
        )
        for name, it in counted.items()
        if name in rows
    }


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


def _replica(
    found: FoundReplica,
    routed: set[str],
    record: ServiceRecord,
    health: Mapping[str, ReplicaHealth],
    figures: Mapping[str, ReplicaFigures],
) -> ReplicaOverview:
    name = found.replica.name
    return ReplicaOverview(
        name=name,
        group=record.group_of(found.replica.stamp.revision, found.replica.stamp.replica),
        instance=found.instance.name,
        runtime=found.replica.runtime,
        state=found.status.state,
        restarts=found.status.restarts,
        routed=name in routed,
        started_at=found.status.started_at,
        replaced=record.replacements[name].times if name in record.replacements else 0,
        check=health[name].check if name in health else "",
        price=found.instance.price,
        figures=figures.get(name),
    )
