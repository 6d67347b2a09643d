"""Actions as Prefect tasks: each shows in the UI, with its retries and its log."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.controller.goal import ReplicaTemplate
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica
from prefect_dstack.tasks import gateways, replicas

__all__ = ["TaskActions"]


class TaskActions:
    """Carries out each action as a task of the flow run that it is called in; implements `Actions`.

    Args:
        infrastructure: Machines and runtimes.
        gateway: The gateway in front of the service.
    """

    def __init__(self, infrastructure: Infrastructure, gateway: ManagedGateway) -> None:
        self.infrastructure, self.gateway = infrastructure, gateway

    def provision(self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements) -> Instance:
        """Get a machine; see `Actions.provision`."""
        return replicas.provision_instance(self.infrastructure, offers, stamp, requirements)

    def launch(self, instance: Instance, launch: Launch) -> Replica:
        """Start a replica; see `Actions.launch`."""
        return replicas.launch_replica(self.infrastructure, instance, launch)

    def wait_until_ready(
        self, found: FoundReplica, template: ReplicaTemplate, abandoned: threading.Event
    ) -> None:
        """Wait for probes; see `Actions.wait_until_ready`."""
        replicas.wait_until_ready(self.infrastructure, found, template, abandoned)

    def register(self, found: FoundReplica, template: ReplicaTemplate, weight: int) -> None:
        """Route requests to a replica; see `Actions.register`."""
        gateways.register_route(
            self.infrastructure, self.gateway, template.route, found, weight, direct=template.direct
        )

    def tell_router(self, router: FoundReplica, workers: Sequence[FoundReplica]) -> None:
        """Make the workers of a router those that there are; see `Actions.tell_router`."""
        replicas.tell_router(self.infrastructure, router, workers)

    def drain(self, service: str, replica: str, timeout: float | None) -> None:
        """Drain a replica; see `Actions.drain`."""
        gateways.drain_replica(self.gateway, service, replica, timeout)

    def unregister(self, stamp: Stamp, instance: Instance | None) -> None:
        """Remove a replica from its route; see `Actions.unregister`."""
        gateways.unregister_replica(self.infrastructure, self.gateway, stamp, instance)

    def remove(self, found: FoundReplica, grace: float) -> None:
        """Remove a replica; see `Actions.remove`."""
        replicas.remove_replica(self.infrastructure, found, grace)

    def terminate(self, instance: Instance) -> None:
        """Release an instance; see `Actions.terminate`."""
        replicas.terminate_instance(self.infrastructure, instance)
