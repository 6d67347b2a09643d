"""What a service is to be in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prefect_dstack.configurations import Probe
from prefect_dstack.domain.rollout import Limits, Wanted
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import DeploymentError
from prefect_dstack.gateways.state import Route
from prefect_dstack.gateways.transitions import EVEN_WEIGHT

__all__ = ["DEFAULT_GRACE", "DEFAULT_STOP_DURATION", "Goal", "ReplicaTemplate"]

DEFAULT_STOP_DURATION = 300.0
"""Seconds that open requests of a replica get to finish."""
DEFAULT_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class ReplicaTemplate:
    """What new replicas are made of, and when they get requests.

    Attributes:
        spec: What each runs.
        route: The route that they are registered in.
        probes: What each must pass before; the port must answer if there are none.
        ready_timeout: Seconds for that at most.
        direct: Whether they get requests from the gateway; those behind a router get them from there.
    """

    spec: WorkloadSpec
    route: Route
    probes: tuple[Probe, ...] = ()
    ready_timeout: float = 600.0
    direct: bool = True


@dataclass(frozen=True)
class Goal:
    """What a service is to be in the end.

    Attributes:
        service: The service.
        revision: The revision whose replicas are wanted; None: none.
        numbers: Their numbers, in order.
        limits: How far their number may go astray meanwhile.
        templates: What they are made of, by group; empty where none are wanted.
        groups: The names of the groups of each revision that has any.
        routers: The name of the group that routes requests to the others, of each revision that has one.
        stop_duration: Seconds that the open requests of a replica get to finish; None: as long as they take.
        weight: The share of the requests that each new replica gets, relative to others.
        untouched: A revision whose replicas stay as they are.
        capacity_timeout: Seconds to go on trying for machines where there are none.
    """

    service: str
    revision: int | None
    numbers: tuple[int, ...]
    limits: Limits
    templates: tuple[ReplicaTemplate, ...] = ()
    groups: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    routers: Mapping[int, str] = field(default_factory=dict)
    stop_duration: float | None = DEFAULT_STOP_DURATION
    weight: int = EVEN_WEIGHT
    untouched: int | None = None
    capacity_timeout: float = 0.0

    @property
    def replicas(self) -> int:
        """How many replicas are wanted."""
        return len(self.numbers)

    @property
    def wanted(self) -> Wanted:
        """What shall run in the end."""
        return Wanted(revision=self.revision, numbers=self.numbers, groups=self.groups)

    @property
    def interconnected(self) -> bool:
        """Whether its replicas connect to each other."""
        return any(template.spec.requirements.interconnected for template in self.templates)

    def template(self, number: int) -> ReplicaTemplate:
        """Return what a replica is made of.

        Args:
            number: Its number.

        Raises:
            DeploymentError: If no replicas are wanted.
        """
        if not self.templates:
            raise DeploymentError(f"{self.service}: nothing is known of its replicas")
        return self.templates[number % len(self.templates)]

    def first(self, count: int) -> tuple[int, ...]:
        """Return the numbers of the replicas with which to begin: one of each group at least.

        Args:
            count: How many there would be without groups.
        """
        return self.numbers[: max(count, len(self.templates))]
