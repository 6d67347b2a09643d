"""Where the replicas of one service are, and where new ones could be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import Observation

__all__ = ["ServiceWorld", "World"]


class World(Protocol):
    """Where the replicas of one service are."""

    def observe(self) -> tuple[Observation, GatewayState | None]:
        """Return what runs of the service, and what its gateway routes."""
        ...

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """Return what could be had for one replica, the best first."""
        ...

    def is_owned(self, instance: Instance) -> bool:
        """Return whether an instance was created for one replica, and goes with it."""
        ...


class ServiceWorld:
    """Where the replicas of one service are; implements `World`.

    Args:
        infrastructure: Machines and runtimes.
        gateway: The gateway in front of the service.
        service: The service.
        runtimes: What its replicas run in.
    """

    def __init__(
        self,
        infrastructure: Infrastructure,
        gateway: ManagedGateway,
        service: str,
        runtimes: Iterable[str],
    ) -> None:
        self.infrastructure = infrastructure
        self.gateway = gateway
        self.service = service
        self.runtimes = frozenset(runtimes)

    def observe(self) -> tuple[Observation, GatewayState | None]:
        """Query its machines and its gateway; see `World.observe`."""
        return self.infrastructure.observe(self.service, self.runtimes), self.gateway.state()

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """Query the backends; see `World.offers`."""
        return self.infrastructure.offers(requirements)

    def is_owned(self, instance: Instance) -> bool:
        """Query the instance's backend; see `World.is_owned`."""
        return self.infrastructure.is_owned(instance)
