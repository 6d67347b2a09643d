"""Repair: what actually runs, on every machine and gateway, is made what the records want."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

from prefect_dstack.backends.base import CleansUp, Instance, ProvidesGatewayMachines
from prefect_dstack.controller.convergence import Log
from prefect_dstack.controller.goal import DEFAULT_GRACE
from prefect_dstack.controller.routers import party_of, untold
from prefect_dstack.domain.record import LOST, ServiceRecord
from prefect_dstack.domain.rollout import Limits, Step, Wanted, all_steps
from prefect_dstack.domain.run_record import RunRecord
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.hosts.files import Commander
from prefect_dstack.hosts.ssh_entry import entry_names, remove_entry
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import (
    FoundReplica,
    GatewayObservation,
    Observation,
    running_replicas,
)
from prefect_dstack.infrastructure.tunnel_keys import key_hosts, keys_on, revoke_key
from prefect_dstack.services.bundles import prune_bundle_storage, prune_bundles
from prefect_dstack.services.location import is_elsewhere
from prefect_dstack.services.preparation import recorded
from prefect_dstack.services.previews import end_preview
from prefect_dstack.services.publication import publish_event
from prefect_dstack.services.restoration import restore
from prefect_dstack.services.run import ServiceRun, flow_run_id, holding
from prefect_dstack.services.runs.names import end_lost_run
from prefect_dstack.store.records import find_record, readable_records, save_record
from prefect_dstack.store.run_records import all_runs
from prefect_dstack.store.runs import has_died, is_known, is_over
from prefect_dstack.tasks.gateways import create_gateway, remove_route
from prefect_dstack.tasks.replicas import remove_replica, terminate_instance

__all__ = ["Reconciliation", "reconcile"]

RUNTIMES = ("docker", "process")
PARALLEL_SERVICES = 16
# A service that somebody else works on is left to them.
BUSY_WAIT = 2.0


@dataclass
class Reconciliation:
    """What a repair has done, or would do.

    Attributes:
        done: A line for each thing that was done.
        problems: What could not be repaired, and why.
    """

    done: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def reconcile(infrastructure: Infrastructure, log: Log, *, dry_run: bool, foreign: bool) -> Reconciliation:
    """Compare the records with what actually runs, and repair the difference, service by service at once.

    Args:
        infrastructure: Where to look.
        log: Told of what is left alone.
        dry_run: Only find out what would be done.
        foreign: Remove also what flow runs have created that this Prefect API does not know.

    Returns:
        What was done, and what could not be.
    """
    result = Reconciliation()
    records, unreadable = readable_records()
    result.problems += [f"{name}: {problem}" for name, problem in unreadable.items()]
    observation = infrastructure.observe(None, RUNTIMES)
    for name, reason in observation.unreachable.items():
        log.warning("%s cannot be reached, its replicas count as gone: %s", name, reason)
    result.problems += [f"{name} cannot be asked: {reason}" for name, reason in observation.unlisted.items()]

    def repair(record: ServiceRecord) -> tuple[list[str], str]:
        gateway = gateways[record.gateway]
        try:
            return _repair(record, observation, gateway, infrastructure, log, dry_run=dry_run), ""
        except PrefectDstackError as error:
            return [], f"{record.name}: {error}"

    with ThreadPoolExecutor(PARALLEL_SERVICES) as pool:
        gateways = {
            name: pool.submit(copy_context().run, _observe, name, infrastructure)
            for name in sorted({record.gateway for record in records})
        }
        repairs = [pool.submit(copy_context().run, repair, record) for record in records]
        for lines, problem in (repaired.result() for repaired in repairs):
            result.done += lines
            result.problems += [problem] if problem else []
    for clean in _cleaning(infrastructure, observation, set(unreadable), log, dry_run, foreign):
        try:
            result.done += clean()
        except PrefectDstackError as error:
            result.problems.append(str(error))
    return result


def _observe(gateway: str, infrastructure: Infrastructure) -> GatewayObservation:
    return infrastructure.gateway(gateway).observe()


def _repair(
    record: ServiceRecord,
    observation: Observation,
    gateway: Future[GatewayObservation],
    infrastructure: Infrastructure,
    log: Log,
    *,
    dry_run: bool,
) -> list[str]:
    if record.deploying is not None and not has_died(record.deploying):
        log.info("%s: is being deployed, left alone", record.name)
        return []
    here = infrastructure.here
    moves_here = (
        record.deploying is not None
        and record.deploying.location is not None
        and record.deploying.location.id == here.id
    )
    if is_elsewhere(record, here) and not moves_here:
        return _end_left_behind(record, observation, infrastructure, log, dry_run=dry_run)
    mine = observation.of_service(record.name)
    # What is stopped may have outlived its gateway.
    outlived = record.active is None and infrastructure.find_gateway(record.gateway) is None
    seen = GatewayObservation() if outlived else gateway.result()
    mine, duplicates = mine.without_duplicates(seen.state)
    steps = _steps(record, mine, seen.state, infrastructure)
    runs = record.active is None or seen.running
    if not (runs or dry_run):  # the repair of another service may have started it meanwhile
        runs = infrastructure.gateway(record.gateway).running()
    cut_off = [found for found in _cut_off(record, mine, seen, infrastructure) if found not in duplicates]
    cut_off = cut_off if runs else []
    expired = record.approval is not None and record.pending() is None
    routers = _untold(record, mine, seen.state, infrastructure) if runs and not steps else []
    if runs and not (steps or duplicates or cut_off or routers or record.deploying or expired):
        return []
    lines = _plan(record, steps, duplicates, cut_off, runs=runs)
    lines += [f"{record.name}: tell router {router} which replicas there are" for router in routers]
    if dry_run:
        return lines
    try:
        with holding(record.name, infrastructure, wait=BUSY_WAIT) as run:
            fresh = find_record(record.name)
            if fresh is None:
                return []
            unchanged = fresh == record
            fresh = fresh.abandoned()
            for found in cut_off if unchanged else []:
                machine = infrastructure.machine(found.instance)
                infrastructure.gateway(record.gateway).reach(found.instance, machine, found.replica)
            # What only has to go makes nothing worse for clients.
            lacking = not runs or any(step.action in ("launch", "route") for step in steps)
            _restore(fresh, run, lines if lacking else [])
    except TimeoutError:
        log.info("%s: somebody else works on it, left alone", record.name)
        return []
    return lines


def _restore(record: ServiceRecord, run: ServiceRun, problems: list[str]) -> None:
    """Bring a service to its desired state; events report that it was degraded, and that it has recovered."""
    degraded = record.active is not None and problems
    if degraded:
        publish_event("degraded", record.name, record.active, {"problems": problems})
    restore(record, run)
    if degraded:
        publish_event("restored", record.name, record.active, {"reason": "it was repaired"})


def _plan(
    record: ServiceRecord,
    steps: list[Step],
    duplicates: list[FoundReplica],
    cut_off: list[FoundReplica],
    *,
    runs: bool,
) -> list[str]:
    """Return a line for each thing that is to be repaired."""
    lines = [] if runs else [f"{record.name}: start gateway {record.gateway}"]
    lines += [f"{record.name}: {line}" for line in _describe(record.name, steps)]
    lines += [
        f"{record.name}: remove the duplicate of {it.replica.name} on {it.instance.name}" for it in duplicates
    ]
    lines += [
        f"{record.name}: open the tunnel of gateway {record.gateway} to {found.replica.name} again"
        for found in cut_off
    ]
    if record.approval is not None and record.pending() is None:
        lines.append(
            f"{record.name}: give up {record.name}@{record.approval.revision}, as nobody approved it"
        )
    if not lines and record.deploying is not None:
        lines = [f"{record.name}: finish what flow run {record.deploying.flow_run} has left"]
    return lines


def _end_left_behind(
    record: ServiceRecord,
    observation: Observation,
    infrastructure: Infrastructure,
    log: Log,
    *,
    dry_run: bool,
) -> list[str]:
    """Remove what a service that was moved to another machine has on this one."""
    here = infrastructure.here
    found = [found for found in observation.of_service(record.name).found if found.instance.id == here.id]
    noted = any(place.id == here.id for place in record.left_behind)
    lines = [f"{record.name}: remove {item.replica.name}, as the service has moved" for item in found]
    if dry_run or not (found or noted):
        return lines
    try:
        with holding(record.name, infrastructure, wait=BUSY_WAIT):
            fresh = find_record(record.name)
            if fresh is None or not is_elsewhere(fresh, here):
                return []
            gateway = infrastructure.find_gateway(record.gateway)
            if gateway is not None and gateway.bound_to_machine:
                remove_route(gateway, record.name)
            for item in found:
                remove_replica(infrastructure, item, DEFAULT_GRACE)
            left = [place for place in fresh.left_behind if place.id != here.id]
            save_record(fresh.model_copy(update={"left_behind": left}))
    except TimeoutError:
        log.info("%s: somebody else works on it, left alone", record.name)
        return []
    return lines


def _describe(service: str, steps: list[Step]) -> Iterator[str]:
    """Yield what becomes of each replica."""
    actions: dict[str, list[str]] = {}
    for step in steps:
        actions.setdefault(f"{service}-{step.revision}-{step.replica}", []).append(step.action)
    for replica, done in actions.items():
        if "launch" in done:
            yield f"start {replica}{' again' if 'remove' in done else ''}"
        else:
            yield f"{'remove' if 'remove' in done else 'route'} {replica}"


def _cut_off(
    record: ServiceRecord, observation: Observation, seen: GatewayObservation, infrastructure: Infrastructure
) -> list[FoundReplica]:
    """Return the replicas that run, and that their gateway does not reach through their tunnels."""
    if record.active is None:
        return []
    unusable = seen.unusable(record.name)
    if not unusable:
        return []
    tunnels = {stamp.name for stamp in infrastructure.gateway(record.gateway).tunnels()}
    return [
        found
        for found in observation.found
        if found.replica.name in tunnels & unusable and found.status.state == "running"
    ]


def _untold(
    record: ServiceRecord,
    observation: Observation,
    state: GatewayState | None,
    infrastructure: Infrastructure,
) -> list[str]:
    """Return the routers of a service that do not know the replicas that there are."""
    pending = record.pending()
    if record.active is None or not record.routers:
        return []
    untouched = None if pending is None else pending.revision
    found = (observation, state, record.name, record.groups, record.routers)
    return untold(infrastructure, party_of(*found, untouched=untouched))


def _steps(
    record: ServiceRecord,
    observation: Observation,
    state: GatewayState | None,
    infrastructure: Infrastructure,
) -> list[Step]:
    pending, active = record.pending(), record.active_revision
    running = [
        replica
        for replica in running_replicas(observation, record.name, state)
        if pending is None or replica.revision != pending.revision
    ]
    if active is None:
        return all_steps(running, Wanted(revision=None), Limits(max_surge=0))
    wanted = Wanted(revision=active.replicas_of, numbers=record.wanted_numbers, groups=record.groups)
    # Whether there is anything to do does not depend on the limits, which take a request to know.
    if not all_steps(running, wanted, Limits()):
        return []
    prepared = recorded(record, active, infrastructure.sources)
    return all_steps(running, wanted, Limits.of(prepared.configuration.rollout, wanted.replicas))


def _cleaning(
    infrastructure: Infrastructure,
    observation: Observation,
    unreadable: set[str],
    log: Log,
    dry_run: bool,
    foreign: bool,
) -> Iterator[Callable[[], list[str]]]:
    """Yield what is to be cleaned, place by place: one that cannot be reached does not hold up the others."""
    records = {record.name: record for record in readable_records()[0]}
    busy = {name for name, record in records.items() if record.deploying is not None} | unreadable
    runs = {run.name: run for run in all_runs()}
    busy |= {run.name for run in runs.values() if run.working is not None and not has_died(run.working)}
    others = set() if foreign else _foreign(records, observation, log)
    busy |= others
    held: dict[str, set[str]] = {}
    for name in infrastructure.gateway_names:
        yield partial(_finish_change, infrastructure, name, dry_run)
        yield partial(_remove_routes, infrastructure, name, records, busy, dry_run)
        yield partial(_end_tunnels, infrastructure, name, busy, held, observation, dry_run)
    # Only then: the far end of a tunnel cannot be ended on a machine that was given back.
    for run in runs.values():
        if run.name not in busy and not run.is_over:
            yield partial(_end_run, infrastructure, run, log, dry_run)
    owned = busy | {run.name for run in runs.values() if not run.is_over}
    yield lambda: _remove_ownerless(infrastructure, records, owned, observation, dry_run)
    unknown = observation.unreachable | observation.unlisted
    machines = [
        instance
        for instance in infrastructure.instances(None, ["docker"])
        if instance.name not in unknown and instance.id != infrastructure.here.id
    ]
    for host, reached in key_hosts(infrastructure, machines):
        yield partial(_revoke_keys, infrastructure, host, reached, busy, held, dry_run)
    yield partial(_remove_entries, infrastructure, runs, dry_run)
    yield partial(_clean_bundle_storage, infrastructure, dry_run)
    yield lambda: _clean_up(infrastructure, log, dry_run, shared=bool(others))


def _end_run(infrastructure: Infrastructure, run: RunRecord, log: Log, dry_run: bool) -> list[str]:
    """Remove a task or a development environment whose process has died."""
    if infrastructure.here.differs_from(run.location):
        return []
    ended = dry_run or end_lost_run(run.name, infrastructure, flow_run_id(), log, state="failed", reason=LOST)
    if not ended:
        return []
    return [f"{run.name}: take down what run {run.number} has left"]


def _remove_entries(infrastructure: Infrastructure, runs: dict[str, RunRecord], dry_run: bool) -> list[str]:
    """Remove what leads into development environments that are gone; they may have ended from elsewhere."""
    lines = []
    for name in entry_names(infrastructure.home):
        # What is not known here may be another Prefect API's.
        if name in runs and runs[name].is_over:
            lines.append(f"{name}: remove its SSH entry")
            if not dry_run:
                remove_entry(name, infrastructure.home)
    return lines


def _foreign(records: dict[str, ServiceRecord], observation: Observation, log: Log) -> set[str]:
    """Return the services that seem to be another Prefect API's."""
    stamps = [found.replica.stamp for found in observation.found]
    stamps += [stamp for _, stamp in observation.empty]
    unknown = {stamp for stamp in stamps if stamp.service not in records and not is_known(stamp.flow_run)}
    for stamp in sorted(unknown, key=lambda stamp: stamp.name):
        log.warning(
            "%s is left alone: this Prefect API does not know the flow run that created it; if no other one "
            "deploys there: prefect-dstack reconcile --foreign",
            stamp.name,
        )
    return {stamp.service for stamp in unknown}


def _remove_ownerless(
    infrastructure: Infrastructure,
    records: dict[str, ServiceRecord],
    busy: set[str],
    observation: Observation,
    dry_run: bool,
) -> list[str]:
    lines = []

    def is_ownerless(stamp: Stamp) -> bool:
        return stamp.service not in {*records, *busy} and is_over(stamp.flow_run)

    for found in observation.found:
        stamp = found.replica.stamp
        if is_ownerless(stamp):
            lines.append(f"remove {stamp.name} from {found.instance.name}: no record owns it")
            if not dry_run:
                remove_replica(infrastructure, found, DEFAULT_GRACE)
                if infrastructure.is_owned(found.instance):
                    terminate_instance(infrastructure, found.instance)
    for instance, stamp in observation.empty:
        if is_ownerless(stamp):
            lines.append(f"terminate {instance.name}: no record owns {stamp.name}")
            if not dry_run:
                terminate_instance(infrastructure, instance)
    return lines


def _finish_change(infrastructure: Infrastructure, name: str, dry_run: bool) -> list[str]:
    """Have a gateway run what its state says, if whoever changed it last was killed meanwhile."""
    gateway = infrastructure.gateway(name)
    if gateway.state() is None or not gateway.control.is_unfinished():
        return []
    if not dry_run:
        create_gateway(gateway)
    return [f"finish a change of gateway {name}"]


def _remove_routes(
    infrastructure: Infrastructure,
    name: str,
    records: dict[str, ServiceRecord],
    busy: set[str],
    dry_run: bool,
) -> list[str]:
    lines = []
    gateway = infrastructure.gateway(name)
    state = gateway.state()
    for service in [] if state is None else list(state.routes):
        record = records.get(service)
        serves = record is not None and name in _gateways(record)
        serves = serves and not (
            gateway.bound_to_machine and record is not None and is_elsewhere(record, infrastructure.here)
        )
        if service in busy:
            continue
        preview = None if state is None else state.routes[service].preview
        if serves and preview is not None and record is not None and record.pending() is None:
            lines.append(f"end the preview of {service}@{preview.revision} at gateway {name}")
            if not dry_run:
                end_preview(record, gateway, infrastructure)
        if serves:
            continue
        lines.append(f"remove the route of {service} from gateway {name}: no record owns it")
        if not dry_run:
            remove_route(gateway, service)
    return lines


def _gateways(record: ServiceRecord) -> set[str]:
    """Return the gateways that route a service, or are about to."""
    pending = record.pending()
    gateways = set() if pending is None else {pending.gateway}
    return gateways if record.active is None else {*gateways, record.gateway}


def _end_tunnels(
    infrastructure: Infrastructure,
    name: str,
    busy: set[str],
    held: dict[str, set[str]],
    observation: Observation,
    dry_run: bool,
) -> list[str]:
    """End a gateway's tunnels that no route uses, and note the others."""
    lines = []
    gateway = infrastructure.gateway(name)
    state = gateway.state()
    routes = state.routes.values() if state else ()
    used = {replica for route in routes for replica in route.replicas}
    used |= {route.preview.replica.name for route in routes if route.preview is not None}
    kept = set()
    for stamp in gateway.tunnels():
        if stamp.name in used or stamp.service in busy:
            kept.add(stamp.name)
            continue
        lines.append(f"end the tunnel of gateway {name} to {stamp.name}: no route uses it")
        if not dry_run:
            found = observation.of(stamp.name)
            gateway.unreach(stamp, None if found is None else infrastructure.machine(found.instance))
    held[name] = kept
    return lines


def _revoke_keys(
    infrastructure: Infrastructure,
    host: Commander,
    reached: Sequence[Instance],
    busy: set[str],
    held: dict[str, set[str]],
    dry_run: bool,
) -> list[str]:
    """Revoke the keys of tunnels that their gateways do not hold, or that lead to another machine now."""
    observation = infrastructure.observe(None, ["docker"], reached)
    there = {found.replica.name for found in observation.found}
    lines = []
    for gateway, replica in keys_on(host):
        if gateway not in held or replica.rsplit("-", 2)[0] in busy:
            continue
        if replica in held[gateway] and (replica in there or observation.unreachable):
            continue
        lines.append(f"take the key of gateway {gateway} to {replica} from {host.name}")
        if not dry_run:
            revoke_key(host, gateway, replica)
    return lines


def _clean_bundle_storage(infrastructure: Infrastructure, dry_run: bool) -> list[str]:
    removed = prune_bundle_storage(infrastructure, dry_run=dry_run)
    name = "" if infrastructure.bundle_storage is None else infrastructure.bundle_storage.name
    return [f"remove files that no revision needs from {name}: {digest[:12]}" for digest in sorted(removed)]


def _clean_up(infrastructure: Infrastructure, log: Log, dry_run: bool, *, shared: bool) -> list[str]:
    """Remove what is left of machines and revisions, and warn of gateways that nobody knows any more."""
    lines = [f"remove what is left of {name}" for name in infrastructure.sweep(dry_run=dry_run)]
    # Which files the services of another Prefect API need is in the records there.
    unneeded = set() if shared else prune_bundles(infrastructure, dry_run=dry_run)
    lines += [f"remove files that no revision needs: {digest[:12]}" for digest in sorted(unneeded)]
    for backend in infrastructure.backends.values():
        if isinstance(backend, CleansUp) and not dry_run:
            backend.cleanup()
        if isinstance(backend, ProvidesGatewayMachines):
            unknown = set(backend.gateway_machines().names()) - set(infrastructure.configured_gateways)
            for name in sorted(unknown):
                log.warning(
                    "gateway %s runs on %s, but is not known here: prefect-dstack gateway delete %s "
                    "removes it",
                    *(name, backend.name.upper(), name),
                )
    return lines
