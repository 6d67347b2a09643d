"""A world of one service, in memory: what `converge` sees and what its actions do, in no time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.controller.goal import Goal, ReplicaTemplate
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements, WorkloadSpec
from prefect_dstack.errors import HostUnreachableError
from prefect_dstack.gateways.state import GatewayState, Route, RouteReplica
from prefect_dstack.infrastructure.observation import FoundReplica, Observation
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus

SERVICE = "hello"
ROUTE = Route(service=SERVICE, port=8080)
SPEC = WorkloadSpec(requirements=Requirements(name=SERVICE), image="x", port=8000, directory=Path("/"))
HOST = Instance(backend="ssh", id="lab/host", name="host", address="192.0.2.1")


class Interrupted(BaseException):
    """The process was told to end."""


class FakeWorld:
    """Implements `World` and `Actions`.

    Args:
        fail_at: Which action fails, counted from 1; 0: none.
        failure: What it raises.
    """

    def __init__(self, fail_at: int = 0, failure: Callable[[], BaseException] = Interrupted) -> None:
        self.replicas: dict[str, ReplicaStatus] = {}
        self.stamps: dict[str, Stamp] = {}
        self.specs: dict[str, WorkloadSpec] = {}
        self.told: dict[str, set[str]] = {}
        self.state = GatewayState(name="local").with_route(ROUTE)
        self.provisioned: set[str] = set()
        self.fewest_serving: int | None = None
        self.most_existing = 0
        self.actions: list[str] = []
        self.looks_for_offers = 0
        self._lock = threading.Lock()
        self._fail_at, self._failure = fail_at, failure

    def observe(self) -> tuple[Observation, GatewayState]:
        found = [
            FoundReplica(HOST, self._replica(self.stamps[name]), status)
            for name, status in self.replicas.items()
        ]
        return Observation(found=found), self.state

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        self.looks_for_offers += 1
        return [Offer(backend="ssh", instance_type="host", cpus=8, memory_gb=32, slots=100)]

    def is_owned(self, instance: Instance) -> bool:
        return False

    def provision(self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements) -> Instance:
        self._act(f"provision {stamp.name}")
        return HOST

    def launch(self, instance: Instance, launch: Launch) -> Replica:
        with self._lock:
            self.replicas[launch.stamp.name] = ReplicaStatus(state="running")
            self.stamps[launch.stamp.name] = launch.stamp
            self.specs[launch.stamp.name] = launch.spec
            self.most_existing = max(self.most_existing, len(self.replicas))
        self._act(f"launch {launch.stamp.name}")
        return self._replica(launch.stamp)

    def wait_until_ready(
        self, found: FoundReplica, template: ReplicaTemplate, abandoned: threading.Event
    ) -> None:
        self._act(f"wait {found.replica.name}")

    def register(self, found: FoundReplica, template: ReplicaTemplate, weight: int) -> None:
        with self._lock:
            member = RouteReplica(
                name=found.replica.name,
                address="192.0.2.1",
                port=8000,
                weight=weight,
                direct=template.direct,
            )
            self.state = self.state.with_replica(SERVICE, member)
        self._act(f"register {found.replica.name}")

    def tell_router(self, router: FoundReplica, workers: Sequence[FoundReplica]) -> None:
        with self._lock:
            self.told[router.replica.name] = {worker.replica.name for worker in workers}
        self._act(f"tell {router.replica.name}")

    def drain(self, service: str, replica: str, timeout: float | None) -> None:
        with self._lock:
            self.state = self.state.draining(service, replica)
            self._count()
        self._act(f"drain {replica}")

    def unregister(self, stamp: Stamp, instance: Instance | None) -> None:
        with self._lock:
            self.state = self.state.without_replica(SERVICE, stamp.name)
            self._count()
        self._act(f"unregister {stamp.name}")

    def remove(self, found: FoundReplica, grace: float) -> None:
        with self._lock:
            self.replicas.pop(found.replica.name, None)
        self._act(f"remove {found.replica.name}")

    def terminate(self, instance: Instance) -> None:
        raise AssertionError("a shared host is never given back")

    @property
    def serving(self) -> set[str]:
        """The replicas that get requests and can answer them."""
        members = self.state.routes[SERVICE].replicas.values()
        return {
            member.name
            for member in members
            if member.state == "ready"
            and member.name in self.replicas
            and self.replicas[member.name].state == "running"
        }

    def _count(self) -> None:
        serving = len(self.serving)
        self.fewest_serving = serving if self.fewest_serving is None else min(serving, self.fewest_serving)

    def _act(self, action: str) -> None:
        with self._lock:
            self.actions.append(action)
            number = len(self.actions)
        if number == self._fail_at:
            raise self._failure()

    def _replica(self, stamp: Stamp) -> Replica:
        return Replica(stamp=stamp, runtime="docker", id=stamp.name, address="192.0.2.1", port=8000)


def goal(revision: int | None, replicas: int, limits: Limits | None = None, **fields: object) -> Goal:
    """A goal for the service of this world."""
    templates = () if revision is None else (ReplicaTemplate(spec=SPEC, route=ROUTE),)
    return Goal(
        service=SERVICE,
        revision=revision,
        numbers=tuple(range(replicas)),
        limits=limits or Limits(),
        templates=templates,
        **fields,  # type: ignore[arg-type]
    )


def unreachable() -> HostUnreachableError:
    """What a host that is gone causes."""
    return HostUnreachableError("host: no answer")
