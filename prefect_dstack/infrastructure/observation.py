"""What actually runs: replicas found on machines, beside what a gateway routes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.rollout import Running
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import ProvisioningError
from prefect_dstack.gateways.look import GatewayLook
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.runtimes.base import Replica, ReplicaStatus

__all__ = ["FoundReplica", "GatewayObservation", "Observation", "running_replicas"]


@dataclass(frozen=True)
class FoundReplica:
    """A replica, where it runs, and how it is."""

    instance: Instance
    replica: Replica
    status: ReplicaStatus


@dataclass(frozen=True)
class Observation:
    """What was found on all machines that were asked.

    Attributes:
        found: The replicas.
        empty: Machines that were created for a replica, without it.
        unreachable: Machines that do not answer, and why.
        unlisted: Regions whose machines are not known, and why.
    """

    found: list[FoundReplica] = field(default_factory=list)
    empty: list[tuple[Instance, Stamp]] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> FoundReplica | None:
        """Return a replica by its name; None if it was not found."""
        return next((found for found in self.found if found.replica.name == name), None)

    def of_service(self, service: str) -> Observation:
        """Return what was found of one service."""
        return replace(
            self,
            found=self._found_by_service.get(service, []),
            empty=[(instance, stamp) for instance, stamp in self.empty if stamp.service == service],
        )

    @cached_property
    def _found_by_service(self) -> dict[str, list[FoundReplica]]:
        found: dict[str, list[FoundReplica]] = {}
        for it in self.found:
            found.setdefault(it.replica.stamp.service, []).append(it)
        return found

    def occupied(self, revision: int | None) -> Counter[str]:
        """Count the replicas of a revision on each machine, by its name."""
        return Counter(
            found.instance.name for found in self.found if found.replica.stamp.revision == revision
        )

    @property
    def networks(self) -> frozenset[str]:
        """The private networks on which replicas are."""
        return frozenset(found.instance.network for found in self.found if found.instance.network)

    def without_duplicates(self, state: GatewayState | None) -> tuple[Observation, list[FoundReplica]]:
        """Separate replicas from their duplicates.

        A host that was away comes back with replicas that were replaced elsewhere meanwhile.

        Args:
            state: The gateway's: of two replicas with one name, the one that gets requests is kept.

        Returns:
            What was found with one replica of each name, and the others.
        """
        kept: dict[str, FoundReplica] = {}
        duplicates: list[FoundReplica] = []
        for found in self.found:
            replica = found.replica
            other = kept.setdefault(replica.name, found)
            if other is found:
                continue
            if state is not None and _is_routed(replica, state):
                kept[replica.name], found = found, other
            duplicates.append(found)
        return replace(self, found=list(kept.values())), duplicates


@dataclass(frozen=True)
class GatewayObservation:
    """What a gateway was found to be like, for all of its services.

    Attributes:
        state: What it routes; None: it does not exist (yet, or any more).
        running: Whether its HAProxy is there, or about to be back.
        look: What it counts, and what it thinks of replicas; None: it does not answer.
    """

    state: GatewayState | None = None
    running: bool = False
    look: GatewayLook | None = None

    def unusable(self, service: str) -> frozenset[str]:
        """Return the names of the replicas of a service that it routes and cannot use.

        Args:
            service: The service.
        """
        health = {} if self.look is None else self.look.health(service)
        return frozenset(replica for replica, it in health.items() if it.status == "DOWN")


def _is_routed(replica: Replica, state: GatewayState) -> bool:
    members = (route.replicas.get(replica.name) for route in state.routes.values())
    address = (replica.address, replica.port)
    return any(member is not None and (member.address, member.port) == address for member in members)


def running_replicas(observation: Observation, service: str, state: GatewayState | None) -> list[Running]:
    """Summarize a service for the plan of a rollout.

    Args:
        observation: What was found.
        service: The service.
        state: The gateway's; None if it does not exist.

    Returns:
        Its replicas; one that is routed but was not found is dead, as is a machine without its replica.

    Raises:
        ProvisioningError: If it is not known which are dead, because a region cannot be asked.
    """
    route = None if state is None else state.routes.get(service)
    routed = {} if route is None else dict(route.replicas)
    phases: dict[tuple[int, int], str] = {}
    for _, stamp in observation.empty:
        phases[stamp.revision, stamp.replica] = "dead"
    for found in observation.found:
        stamp = found.replica.stamp
        member = routed.pop(found.replica.name, None)
        if found.status.state in ("exited", "gone"):
            phase = "dead"
        elif member is None:
            phase = "launched"
        else:
            phase = "draining" if member.state == "drain" else "serving"
        phases[stamp.revision, stamp.replica] = phase
    if routed and observation.unlisted:
        places = "; ".join(f"{name}: {reason}" for name, reason in observation.unlisted.items())
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
