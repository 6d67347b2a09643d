"""A new revision that is ready, and waits for a person before it gets requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.record import PendingApproval, ServiceRecord, now
from prefect_dstack.errors import DeploymentError
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.candidates import start_candidates
from prefect_dstack.services.preparation import PreparedService
from prefect_dstack.services.run import ServiceRun

__all__ = ["prepare_approval"]


def prepare_approval(
    goal: Goal, prepared: PreparedService, gateway: ManagedGateway, record: ServiceRecord, run: ServiceRun
) -> PendingApproval:
    """Start as many replicas of a new revision as may run beside the old ones; none gets a request.

    Args:
        goal: The new revision.
        prepared: What it is made of.
        gateway: The gateway in front of the service.
        record: The record of the service.
        run: The flow run that does it.

    Returns:
        What a person is to decide.

    Raises:
        PrefectDstackError: If the replicas do not become ready.
    """
    assert goal.revision is not None  # noqa: S101 - a rollout is to a revision
    count = max(1, min(goal.replicas, goal.limits.max_surge))
    found = start_candidates(goal, count, gateway, record, run)
    ready = [one for one in found if one.replica.stamp.revision == goal.revision]
    if not ready:
        raise DeploymentError(f"{goal.service}@{goal.revision}: ended before it could be approved")
    since = now()
    first = next(one for one in ready if goal.template(one.replica.stamp.replica).direct)
    return PendingApproval(
        revision=goal.revision,
        flow_run=run.flow_run,
        requested_at=since,
        expires_at=since + timedelta(seconds=prepared.configuration.rollout.approval_timeout),
        question=_question(goal, ready, record),
        gateway=gateway.name,
        private_url=f"http://{first.replica.address}:{first.replica.port}",
        machine=first.instance.name,
    )


def _question(goal: Goal, ready: Sequence[FoundReplica], record: ServiceRecord) -> str:
    count = f"{len(ready)} {'replica' if len(ready) == 1 else 'replicas'} ready"
    price = sum(one.instance.price or 0 for one in ready)
    cost = f" at ${price:g} per hour" if price else ""
    instead = f" in the place of {record.name}@{record.active}" if record.active is not None else ""
    return f"Send the requests to {goal.service}@{goal.revision}{instead}? ({count}{cost})"
