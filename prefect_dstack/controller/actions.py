"""What can be done to one replica, its machine and its route: one method for each action on the world."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.controller.goal import ReplicaTemplate
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica

__all__ = ["Actions"]


class Actions(Protocol):
    """Carries out single actions. Each may raise, and may be called from several threads at once."""

    def provision(self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements) -> Instance:
        """Get a machine for a replica."""
        ...

    def launch(self, instance: Instance, launch: Launch) -> Replica:
        """Start a replica on an instance."""
        ...

    def wait_until_ready(
        self, found: FoundReplica, template: ReplicaTemplate, abandoned: threading.Event
    ) -> None:
        """Wait until a replica has passed its probes, or the answer does not matter any more."""
        ...

    def register(self, found: FoundReplica, template: ReplicaTemplate, weight: int) -> None:
        """Route requests to a replica."""
        ...

    def tell_router(self, router: FoundReplica, workers: Sequence[FoundReplica]) -> None:
        """Make the workers of a router those that there are."""
        ...

    def drain(self, service: str, replica: str, timeout: float | None) -> None:
        """Drain a replica: send it no new requests, and wait for the open ones to end."""
        ...

    def unregister(self, stamp: Stamp, instance: Instance | None) -> None:
        """Remove a replica from its route, and close the tunnel to it."""
        ...

    def remove(self, found: FoundReplica, grace: float) -> None:
        """Stop a replica and remove every trace of it."""
        ...

    def terminate(self, instance: Instance) -> None:
        """Release an instance."""
        ...
