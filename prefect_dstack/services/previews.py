"""A revision that gets no requests, asked through the gateway by those who have a token."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.gateways.route import Preview
from prefect_dstack.gateways.state import RouteReplica
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica

__all__ = ["end_preview", "start_preview"]


def start_preview(
    goal: Goal, found: Sequence[FoundReplica], gateway: ManagedGateway, infrastructure: Infrastructure
) -> None:
    """Let a gateway send requests that ask for a new revision, with a token, to a replica of it.

    Args:
        goal: The new revision.
        found: The replicas of the service.
        gateway: The gateway in front of it.
        infrastructure: Where the replicas run.
    """
    for one in found:
        stamp = one.replica.stamp
        if stamp.revision == goal.revision and goal.template(stamp.replica).direct:
            machine = infrastructure.machine(one.instance)
            address, port = gateway.reach(one.instance, machine, one.replica)
            # Without checks it is never down: requests for it must not go to another revision instead.
            member = RouteReplica(name=one.replica.name, address=address, port=port, checked=False)
            gateway.preview(goal.service, Preview(revision=goal.revision, replica=member))
            return


def end_preview(record: ServiceRecord, gateway: ManagedGateway, infrastructure: Infrastructure) -> None:
    """End a preview, and the tunnel to its replica.

    Args:
        record: The record of the service; no error if no revision of it is previewed.
        gateway: The gateway in front of it.
        infrastructure: Where the replicas run.
    """
    state = gateway.state()
    route = None if state is None else state.routes.get(record.name)
    if route is None or route.preview is None:
        return
    gateway.preview(record.name, None)
    found = infrastructure.observe(record.name, record.runtimes).of(route.preview.replica.name)
    if found is not None:
        gateway.unreach(found.replica.stamp, infrastructure.machine(found.instance))
