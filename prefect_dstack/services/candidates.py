"""Replicas of a new revision that run beside what serves, and that no client gets to."""

from __future__ import annotations

import dataclasses

from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.previews import start_preview
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.tasks.canary import share_traffic
from prefect_dstack.tasks.gateways import unregister_replica

__all__ = ["start_candidates"]


def start_candidates(
    goal: Goal, count: int, gateway: ManagedGateway, record: ServiceRecord, run: ServiceRun
) -> list[FoundReplica]:
    """Start the first replicas of a new revision, and wait until they pass their probes.

    A rollout goes on with them. What serves stays as it is. They are not in the route afterwards: whatever
    changes the weights of a route later, they get no requests
    but those that ask for the revision, with a token.

    Args:
        goal: The new revision.
        count: How many replicas; one of each group at least.
        gateway: The gateway in front of the service.
        record: The record of the service.
        run: The flow run that does it.

    Returns:
        All replicas of the service that were found, the new ones among them.
    """
    active = record.active_revision
    candidates = dataclasses.replace(
        goal,
        numbers=goal.first(count),
        limits=Limits(max_surge=0, max_unavailable=0),
        weight=0,
        untouched=None if active is None else active.replicas_of,
    )
    found = run.converge(candidates, gateway, record).found
    for one in found:
        if one.replica.stamp.revision == goal.revision:
            unregister_replica(run.infrastructure, gateway, one.replica.stamp, one.instance)
    share_traffic(gateway, goal.service, {})
    start_preview(goal, found, gateway, run.infrastructure)
    return found
