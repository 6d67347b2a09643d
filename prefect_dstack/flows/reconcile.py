"""Repair: what truly runs, on every machine and gateway, is made what the records want."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from prefect import get_run_logger

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.record import LOST, ServiceRecord
from prefect_dstack.domain.rollout import Limits, Step, Wanted, all_steps
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.flows.convergence import DEFAULT_GRACE
from prefect_dstack.flows.goals import goal_for, held
from prefect_dstack.flows.preparation import recorded_workload
from prefect_dstack.flows.restoring import restore
from prefect_dstack.flows.served import served_flow
from prefect_dstack.hosts.files import Commander
from prefect_dstack.tasks import connections, gateway_places, observation
from prefect_dstack.tasks.gateways import remove_route
from prefect_dstack.tasks.inventory import inventory
from prefect_dstack.tasks.observation import Found, Sight
from prefect_dstack.tasks.reaching import key_hosts, keys_on, reach, revoke_key, tunnels_of, unreach
from prefect_dstack.tasks.records import all_records, find_record
from prefect_dstack.tasks.replicas import remove_replica, terminate_instance
from prefect_dstack.tasks.runs import has_died, is_known, is_over

__all__ = ["reconcile_services"]

RUNTIMES = ("docker", "process")


@served_flow(name="reconcile-services")
def reconcile_services(dry_run: bool = False, foreign: bool = False) -> list[str]:
    """Compare the records with what truly runs, and repair the difference.

    Replicas that are gone are replaced and missing routes restored. What neither a record nor a live flow run
    owns is removed, if this Prefect API knows the flow run that created it. A machine or service that cannot
    be repaired now does not hold up the others.

    Args:
        dry_run: Only say what would be done.
        foreign: Remove also what flow runs have created that this Prefect API does not know: those of a
            database that was reset, or of another Prefect API, whose services this would end.

    Returns:
        What was done, or would be, a line each; empty if all was as wanted.

    Raises:
        PrefectDstackError: At the end, if something could not be repaired.
    """
    logger = get_run_logger()
    done: list[str] = []
    problems: list[str] = []
    records = {record.name: record for record in all_records()}
    sight = observation.look(None, observation.instances_of(None, RUNTIMES), RUNTIMES)
    for name, reason in sight.unreachable.items():
        logger.warning("%s cannot be reached, its replicas count as gone: %s", name, reason)
    problems += [f"{name} cannot be asked: {reason}" for name, reason in sight.unlisted.items()]
    for record in records.values():
        if record.deploying is not None and not has_died(record.deploying):
            logger.info("%s: is being deployed, left alone", record.name)
            continue
        try:
            done += _repair(record, sight, dry_run=dry_run)
        except PrefectDstackError as error:
            problems.append(f"{record.name}: {error}")
    for clean in _cleaning(sight, dry_run=dry_run, foreign=foreign):
        try:
            done += clean()
        except PrefectDstackError as error:
            problems.append(str(error))
    for line in done:
        logger.info("%s: %s", "dry run" if dry_run else "done", line)
    if not done and not problems:
        logger.info("all is as it should be")
    if problems:
        raise PrefectDstackError("; ".join(dict.fromkeys(problems)))
    return done


def _cleaning(sight: Sight, *, dry_run: bool, foreign: bool) -> Iterator[Callable[[], list[str]]]:
    """List what is to be cleaned, place by place: one that cannot be reached does not hold up the others."""
    records = {record.name: record for record in all_records()}
    busy = {name for name, record in records.items() if record.deploying is not None}
    if not foreign:
        busy |= _foreign(records, sight)
    gateways = [gateway_places.LOCAL, *inventory().gateways]
    held: dict[str, set[str]] = {}
    for gateway in gateways:
        yield partial(_remove_routes, gateway, records, busy, dry_run)
        yield partial(_end_tunnels, gateway, busy, held, sight, dry_run)
    # Only then: the far end of a tunnel cannot be ended on a machine that was given back.
    yield lambda: _remove_ownerless(records, busy, sight, dry_run)
    machines = [
        instance
        for instance in observation.instances_of(None, ["docker"])
        if instance.backend != "local" and instance.name not in sight.unreachable | sight.unlisted
    ]
    for host, reached in key_hosts(machines):
        yield partial(_revoke_keys, host, reached, busy, held, dry_run)
    yield lambda: _clean_up(dry_run)


def _repair(record: ServiceRecord, sight: Sight, *, dry_run: bool) -> list[str]:
    steps, twins = _steps(record, sight)
    runs = record.active is None or gateway_places.runs(record.gateway)
    cut_off = [found for found in _cut_off(record, sight) if found not in twins] if runs else []
    if runs and not (steps or twins or cut_off or record.deploying):
        return []
    lines = [] if runs else [f"{record.name}: start gateway {record.gateway}"]
    lines += [f"{record.name}: {line}" for line in _words(record.name, steps)]
    lines += [
        f"{record.name}: remove the twin of {twin.replica.name} on {twin.instance.name}" for twin in twins
    ]
    lines += [
        f"{record.name}: open the tunnel of gateway {record.gateway} to {found.replica.name} again"
        for found in cut_off
    ]
    if not lines and record.deploying is not None:
        lines = [f"{record.name}: finish what flow run {record.deploying.flow_run} has left"]
    if dry_run:
        return lines
    with held(record.name) as turn:
        fresh = find_record(record.name)
        if fresh is None:
            return []
        if fresh.deploying is not None and fresh.deploying.revision is not None:
            fresh = fresh.failed(fresh.deploying.revision, LOST)
        for found in cut_off if fresh == record else []:
            reach(record.gateway, found.instance, found.replica)
        restore(fresh, turn.flow_run)
    return lines


def _words(service: str, steps: list[Step]) -> Iterator[str]:
    """Say what becomes of each replica."""
    actions: dict[str, list[str]] = {}
    for step in steps:
        actions.setdefault(f"{service}-{step.revision}-{step.replica}", []).append(step.action)
    for replica, done in actions.items():
        if "launch" in done:
            yield f"start {replica}{' again' if 'remove' in done else ''}"
        else:
            yield f"{'remove' if 'remove' in done else 'route'} {replica}"


def _cut_off(record: ServiceRecord, sight: Sight) -> list[Found]:
    """Find the replicas that run, and that their gateway does not reach through their tunnels."""
    if record.active is None:
        return []
    unusable = gateway_places.unusable(record.gateway, record.name)
    if not unusable:
        return []
    tunnels = {stamp.name for stamp in tunnels_of(record.gateway)}
    return [
        found
        for found in sight.found
        if found.replica.name in tunnels & set(unusable) and found.status.state == "running"
    ]


def _steps(record: ServiceRecord, sight: Sight) -> tuple[list[Step], list[Found]]:
    state = gateway_places.state(record.gateway)
    mine = replace(
        sight,
        found=[found for found in sight.found if found.replica.stamp.service == record.name],
        empty=[(instance, stamp) for instance, stamp in sight.empty if stamp.service == record.name],
    )
    mine, twins = mine.without_twins(state)
    running = observation.running(mine, record.name, state)
    active = record.active_revision
    if active is None:
        return all_steps(running, Wanted(revision=None, replicas=0), Limits(max_surge=0)), twins
    goal = goal_for(record, active, recorded_workload(record, active), record.gateway, "")
    wanted = Wanted(revision=goal.revision, replicas=goal.replicas)
    return all_steps(running, wanted, goal.limits), twins


def _foreign(records: dict[str, ServiceRecord], sight: Sight) -> set[str]:
    """Find the services that seem to be another Prefect API's."""
    stamps = [found.replica.stamp for found in sight.found] + [stamp for _, stamp in sight.empty]
    unknown = {stamp for stamp in stamps if stamp.service not in records and not is_known(stamp.flow_run)}
    for stamp in sorted(unknown, key=lambda stamp: stamp.name):
        get_run_logger().warning(
            "%s is left alone: this Prefect API does not know the flow run that created it; if no other one "
            "deploys there: prefect-dstack reconcile --foreign",
            stamp.name,
        )
    return {stamp.service for stamp in unknown}


def _remove_ownerless(
    records: dict[str, ServiceRecord], busy: set[str], sight: Sight, dry_run: bool
) -> list[str]:
    lines = []

    def is_ownerless(stamp: Stamp) -> bool:
        return stamp.service not in {*records, *busy} and is_over(stamp.flow_run)

    for found in sight.found:
        stamp = found.replica.stamp
        if is_ownerless(stamp):
            lines.append(f"remove {stamp.name} from {found.instance.name}: no record owns it")
            if not dry_run:
                remove_replica(found.instance, found.replica, DEFAULT_GRACE)
                if connections.backends()[found.instance.backend].stamp(found.instance) is not None:
                    terminate_instance(found.instance)
    for instance, stamp in sight.empty:
        if is_ownerless(stamp):
            lines.append(f"terminate {instance.name}: no record owns {stamp.name}")
            if not dry_run:
                terminate_instance(instance)
    return lines


def _remove_routes(
    gateway: str, records: dict[str, ServiceRecord], busy: set[str], dry_run: bool
) -> list[str]:
    lines = []
    state = gateway_places.state(gateway)
    for service in [] if state is None else list(state.routes):
        record = records.get(service)
        serves = record is not None and record.active is not None and record.gateway == gateway
        if serves or service in busy:
            continue
        lines.append(f"remove the route of {service} from gateway {gateway}: no record owns it")
        if not dry_run:
            remove_route(gateway, service)
    return lines


def _end_tunnels(
    gateway: str, busy: set[str], held: dict[str, set[str]], sight: Sight, dry_run: bool
) -> list[str]:
    """End a gateway's tunnels that no route uses, and note the others."""
    lines = []
    state = gateway_places.state(gateway)
    used = {name for route in (state.routes.values() if state else ()) for name in route.replicas}
    kept = set()
    for stamp in tunnels_of(gateway):
        if stamp.name in used or stamp.service in busy:
            kept.add(stamp.name)
            continue
        lines.append(f"end the tunnel of gateway {gateway} to {stamp.name}: no route uses it")
        if not dry_run:
            found = sight.of(stamp.name)
            unreach(gateway, stamp, None if found is None else found.instance)
    held[gateway] = kept
    return lines


def _revoke_keys(
    host: Commander, reached: list[Instance], busy: set[str], held: dict[str, set[str]], dry_run: bool
) -> list[str]:
    """Take back the keys of tunnels that their gateways do not hold, or that lead to another machine now.

    Args:
        host: The host that they may log in to.
        reached: The machines that it is, or that are reached through it.
        busy: The services that are being deployed.
        held: The tunnels of each gateway, by their replicas.
        dry_run: Only say what would be done.

    Returns:
        What was done, a line each.
    """
    sight = observation.look(None, reached, ["docker"])
    there = {found.replica.name for found in sight.found}
    lines = []
    for gateway, replica in keys_on(host):
        if gateway not in held or replica.rsplit("-", 2)[0] in busy:
            continue
        if replica in held[gateway] and (replica in there or sight.unreachable):
            continue
        lines.append(f"take the key of gateway {gateway} to {replica} from {host.name}")
        if not dry_run:
            revoke_key(host, gateway, replica)
    return lines


def _clean_up(dry_run: bool) -> list[str]:
    """Remove what machines in a cloud have left, and tell of gateways there that nobody knows any more."""
    there = inventory()
    if there.aws is None:
        return []
    if not dry_run:
        there.aws.cleanup()
    for name in sorted(set(gateway_places.in_cloud()) - set(there.gateways)):
        get_run_logger().warning(
            "gateway %s runs on AWS, but is not known here: prefect-dstack gateway delete %s removes it",
            *(name, name),
        )
    return []
