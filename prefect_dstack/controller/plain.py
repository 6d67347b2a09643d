"""Actions as plain calls, for processes that are no flow runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.controller import operations
from prefect_dstack.controller.convergence import Log
from prefect_dstack.controller.goal import ReplicaTemplate
from prefect_dstack.controller.routers import tell_router
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica

__all__ = ["PlainActions"]


class PlainActions:
    """Carries out each action at once, in the calling thread; implements `Actions`.

    Args:
        infrastructure: Machines and runtimes.
        gateway: The gateway in front of the service.
        log: Told of progress.
    """

    def __init__(self, infrastructure: Infrastructure, gateway: ManagedGateway, log: Log) -> None:
        self.infrastructure, self.gateway, self.log = infrastructure, gateway, log

    def provision(self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements) -> Instance:
        """Get a machine; see `Actions.provision`."""
        return operations.provision_instance(self.infrastructure, offers, stamp, requirements, self.log)

    def launch(self, instance: Instance, launch: Launch) -> Replica:
        """Start a replica; see `Actions.launch`."""
        return operations.launch_replica(self.infrastructure, instance, launch, self.log)

    def wait_until_ready(
        self, found: FoundReplica, template: ReplicaTemplate, abandoned: threading.Event
    ) -> None:
        """Wait for probes; see `Actions.wait_until_ready`."""
        operations.wait_until_ready(
            self.infrastructure,
            found,
            template.probes,
            template.spec.environment,
            template.ready_timeout,
            abandoned,
            self.log,
        )

    def register(self, found: FoundReplica, template: ReplicaTemplate, weight: int) -> None:
        """Route requests to a replica; see `Actions.register`."""
        operations.register_replica(
            *(self.infrastructure, self.gateway, template.route, found, weight, self.log),
            direct=template.direct,
        )

    def tell_router(self, router: FoundReplica, workers: Sequence[FoundReplica]) -> None:
        """Make the workers of a router those that there are; see `Actions.tell_router`."""
        for line in tell_router(self.infrastructure, router, workers):
            self.log.info("%s: %s", router.replica.name, line)

    def drain(self, service: str, replica: str, timeout: float | None) -> None:
        """Drain a replica; see `Actions.drain`."""
        operations.drain_replica(self.gateway, service, replica, timeout, self.log)

    def unregister(self, stamp: Stamp, instance: Instance | None) -> None:
        """Remove a replica from its route; see `Actions.unregister`."""
        operations.unregister_replica(self.infrastructure, self.gateway, stamp, instance)

    def remove(self, found: FoundReplica, grace: float) -> None:
        """Remove a replica; see `Actions.remove`."""
        operations.remove_replica(self.infrastructure, found, grace, self.log)

    def terminate(self, instance: Instance) -> None:
        """Release an instance; see `Actions.terminate`."""
        operations.terminate_instance(self.infrastructure, instance, self.log)
