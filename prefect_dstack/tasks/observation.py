"""What truly runs: replicas found on machines, beside what a gateway routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.rollout import Running
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import HostError, HostNotReadyError, ProvisioningError
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.runtimes.base import Replica, ReplicaStatus
from prefect_dstack.tasks import connections

__all__ = ["Found", "Sight", "instances_of", "look", "running"]

AT_ONCE = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Found:
    """A replica, where it runs, and how it is."""

    instance: Instance
    replica: Replica
    status: ReplicaStatus


@dataclass(frozen=True)
class Sight:
    """What was seen in one look around.

    Attributes:
        found: The replicas.
        empty: Machines that were created for a replica, without it.
        unreachable: Machines that do not answer, and why.
        unlisted: Regions whose machines are not known, and why.
    """

    found: list[Found]
    empty: list[tuple[Instance, Stamp]]
    unreachable: dict[str, str]
    unlisted: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Found | None:
        """Find a replica by its name."""
        return next((found for found in self.found if found.replica.name == name), None)

    def without_twins(self, state: GatewayState | None) -> tuple[Sight, list[Found]]:
        """Tell replicas from their twins.

        A host that was away comes back with replicas that were replaced elsewhere meanwhile.

        Args:
            state: The gateway's: of twins, the one that gets requests is kept.

        Returns:
            What was seen with one replica of each name, and the others.
        """
        routes = {} if state is None else state.routes
        routed = {
            (name, member.address, member.port)
            for route in routes.values()
            for name, member in route.replicas.items()
        }
        kept: dict[str, Found] = {}
        twins: list[Found] = []
        for found in self.found:
            replica = found.replica
            other = kept.setdefault(replica.name, found)
            if other is found:
                continue
            if (replica.name, replica.address, replica.port) in routed:
                kept[replica.name], found = found, other
            twins.append(found)
        return replace(self, found=list(kept.values())), twins


def instances_of(service: str | None, runtimes: Iterable[str]) -> list[Instance]:
    """List the machines on which replicas of a service may be.

    Args:
        service: The service; None: any.
        runtimes: What its revisions use; processes are on this machine only.

    Returns:
        Shared machines, and those that were created for the service.
    """
    known = connections.backends()
    names = list(known) if "docker" in set(runtimes) else ["local"]
    instances = []
    for name in names:
        for instance in known[name].instances():
            stamp = known[name].stamp(instance)
            if service is None or stamp is None or stamp.service == service:
                instances.append(instance)
    return instances


def look(service: str | None, instances: Sequence[Instance], runtimes: Iterable[str]) -> Sight:
    """Look at machines, all at once; one that does not answer does not hold up the others.

    Args:
        service: Only replicas of this service; None: of all.
        instances: Where to look.
        runtimes: What to look for.

    Returns:
        What was seen.
    """
    wanted = sorted(set(runtimes))

    unlisted: dict[str, str] = {}

    def look_at(instance: Instance) -> tuple[Instance, list[Found], str]:
        try:
            return instance, _replicas_on(instance, wanted, service), ""
        except HostError as error:
            return instance, [], str(error)
        except ProvisioningError as error:
            unlisted[instance.name] = str(error)
            return instance, [], ""

    found: list[Found] = []
    empty: list[tuple[Instance, Stamp]] = []
    unreachable: dict[str, str] = {}
    for instance, there, problem in _at_once(look_at, instances):
        found += there
        if problem:
            unreachable[instance.name] = problem
        stamp = connections.backends()[instance.backend].stamp(instance)
        if stamp is not None and not there:
            empty.append((instance, stamp))
    return Sight(found=found, empty=empty, unreachable=unreachable, unlisted=unlisted)


def running(sight: Sight, service: str, state: GatewayState | None) -> list[Running]:
    """Sum up a service for the plan of a rollout.

    Args:
        sight: What was seen.
        service: The service.
        state: The gateway's; None if it does not exist.

    Returns:
        Its replicas; one that is routed but was not seen is dead, as is a machine without its replica.

    Raises:
        ProvisioningError: If it is not known which are dead, because a region cannot be asked.
    """
    route = None if state is None else state.routes.get(service)
    routed = {} if route is None else dict(route.replicas)
    phases: dict[tuple[int, int], str] = {}
    for _, stamp in sight.empty:
        phases[stamp.revision, stamp.replica] = "dead"
    for found in sight.found:
        stamp = found.replica.stamp
        member = routed.pop(found.replica.name, None)
        if found.status.state in ("exited", "gone"):
            phase = "dead"
        elif member is None:
            phase = "launched"
        else:
            phase = "draining" if member.state == "drain" else "serving"
        phases[stamp.revision, stamp.replica] = phase
    if routed and sight.unlisted:
        places = "; ".join(f"{name}: {reason}" for name, reason in sight.unlisted.items())
        raise ProvisioningError(
            f"{service}: left as it is: {', '.join(sorted(routed))} may run where nobody can look: {places}"
        )
    for name in routed:
        revision, replica = name.rsplit("-", 2)[1:]
        phases.setdefault((int(revision), int(replica)), "dead")
    return [
        Running.model_validate({"revision": revision, "replica": replica, "phase": phase})
        for (revision, replica), phase in sorted(phases.items())
    ]


def _replicas_on(instance: Instance, runtimes: Sequence[str], service: str | None) -> list[Found]:
    machine = connections.machine(instance)
    found = []
    for name in runtimes:
        if name == "process" and instance.backend != "local":
            continue
        runtime = connections.runtime(name)
        try:
            replicas = runtime.replicas(machine)
        except HostNotReadyError:
            if instance.backend == "local":  # a machine without a Docker Engine has no containers
                continue
            raise
        found += [
            Found(instance, replica, runtime.status(machine, replica))
            for replica in replicas
            if service is None or replica.stamp.service == service
        ]
    return found


def _at_once(action: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    if len(items) <= 1:
        return [action(item) for item in items]
    with ThreadPoolExecutor(min(len(items), AT_ONCE)) as pool:
        return list(pool.map(action, items))
