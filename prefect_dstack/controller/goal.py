"""What a service is to be in the end."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_dstack.configurations import Probe
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.domain.workload import WorkloadSpec
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
    """

    spec: WorkloadSpec
    route: Route
    probes: tuple[Probe, ...] = ()
    ready_timeout: float = 600.0


@dataclass(frozen=True)
class Goal:
    """What a service is to be in the end.

    Attributes:
        service: The service.
        revision: The revision whose replicas are wanted; None: none.
        replicas: How many of them.
        limits: How far the number may go astray meanwhile.
        template: What they are made of; None where none are wanted.
        stop_duration: Seconds that the open requests of a replica get to finish; None: as long as they take.
        weight: The share of the requests that each new replica gets, relative to others.
        untouched: A revision whose replicas stay as they are.
        capacity_timeout: Seconds to go on trying for machines where there are none.
    """

    service: str
    revision: int | None
    replicas: int
    limits: Limits
    template: ReplicaTemplate | None = None
    stop_duration: float | None = DEFAULT_STOP_DURATION
    weight: int = EVEN_WEIGHT
    untouched: int | None = None
    capacity_timeout: float = 0.0
