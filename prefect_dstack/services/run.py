"""What a flow run has in hand while it works on a service, and that nobody else does meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import get_run_logger
from prefect.context import FlowRunContext

from prefect_dstack.backends.base import Offer
from prefect_dstack.controller.convergence import Log, converge
from prefect_dstack.controller.goal import Goal
from prefect_dstack.controller.world import ServiceWorld
from prefect_dstack.domain.record import Deploying, ServiceRecord
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import Observation
from prefect_dstack.services.actions import TaskActions
from prefect_dstack.store.locks import lock
from prefect_dstack.store.records import find_record
from prefect_dstack.store.runs import close_run, has_died, tag_run
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["ServiceRun", "flow_run_id", "holding", "requested_at", "tag_with"]

LONGEST_WAIT = 3600.0
"""Seconds that a flow run waits for another one which works on the same service."""


@dataclass(frozen=True)
class ServiceRun:
    """A flow run that holds the lock of a service.

    Attributes:
        infrastructure: What there is to deploy with, resolved once.
        flow_run: The id of the flow run.
        lease: The id of the lease with which it holds the lock.
        log: The flow run's log.
    """

    infrastructure: Infrastructure
    flow_run: str
    lease: str
    log: Log

    def converge(
        self,
        goal: Goal,
        gateway: ManagedGateway,
        record: ServiceRecord,
        offers: Sequence[Sequence[Offer]] | None = None,
    ) -> Observation:
        """Bring a service to a goal by Prefect tasks; see `controller.convergence.converge`.

        Args:
            goal: What is wanted.
            gateway: The gateway in front of the service.
            record: Its revisions' runtimes are where its replicas are looked for.
            offers: Where the first replicas of each group may run, if that is known already.
        """
        return converge(
            goal,
            self.world(goal, gateway, record),
            TaskActions(self.infrastructure, gateway),
            self.log,
            flow_run=self.flow_run,
            offers=offers,
        )

    def world(self, goal: Goal, gateway: ManagedGateway, record: ServiceRecord) -> ServiceWorld:
        """Return where the replicas of a service are.

        Args:
            goal: What is wanted of it.
            gateway: The gateway in front of it.
            record: Its revisions.
        """
        runtimes = {*record.runtimes, *(template.spec.runtime for template in goal.templates)}
        return ServiceWorld(self.infrastructure, gateway, goal.service, runtimes)


def requested_at() -> datetime:
    """Return when the flow run that this code runs in began, before it waited for others, in UTC.

    That is by the clock of the Prefect API, which all machines share, where the run has it.
    """
    context = FlowRunContext.get()
    if context is None:
        return datetime.now(UTC)
    state = None if context.flow_run is None else context.flow_run.state
    return state.timestamp if state is not None and state.is_running() else context.start_time


def flow_run_id() -> str:
    """Return the id of the flow run that this code runs in; empty outside of flow runs."""
    context = FlowRunContext.get()
    return "" if context is None or context.flow_run is None else str(context.flow_run.id)


def tag_with(service: str) -> None:
    """Tag the flow run that this code runs in with the service that it works on.

    Args:
        service: The service.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        tag_run(context.flow_run, f"service:{service}")


@contextlib.contextmanager
def holding(
    service: str, infrastructure: Infrastructure | None = None, *, wait: float = LONGEST_WAIT
) -> Iterator[ServiceRun]:
    """Hold the lock of a service: nobody else deploys, stops or repairs it meanwhile.

    Args:
        service: The service.
        infrastructure: What there is to deploy with; default: resolved now.
        wait: Seconds to wait for it at most.

    Yields:
        What this flow run has in hand.

    Raises:
        TimeoutError: If it cannot be had in time.
    """
    flow_run = flow_run_id()
    log = get_run_logger()
    tag_with(service)

    def holder() -> Deploying | None:
        record = find_record(service)
        return None if record is None else record.deploying

    with lock(f"service-{service}", flow_run, holder, log.info, wait) as lease:
        left = holder()
        if left is not None and left.flow_run != flow_run and has_died(left):
            close_run(left.flow_run)
        yield ServiceRun(infrastructure or resolve_infrastructure(), flow_run, lease, log)
