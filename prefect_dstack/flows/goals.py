"""What it takes for a revision to be what serves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from prefect import get_run_logger
from prefect.context import FlowRunContext

from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.record import Deploying, Revision, ServiceRecord
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.flows.convergence import DEFAULT_STOP_DURATION, Goal
from prefect_dstack.flows.preparation import Workload
from prefect_dstack.tasks.locks import lock
from prefect_dstack.tasks.records import find_record
from prefect_dstack.tasks.runs import close_run, has_died

__all__ = ["Turn", "asked_at", "drain_time", "goal_for", "held", "run_id", "runtimes_of"]


def goal_for(record: ServiceRecord, revision: Revision, work: Workload, gateway: str, flow_run: str) -> Goal:
    """Say what it takes for a revision to be what serves.

    Args:
        record: Of the service.
        revision: The revision.
        work: What it is made of.
        gateway: The gateway in front of it.
        flow_run: Stamped on what is created.

    Returns:
        The goal, without its route.
    """
    configuration = work.configuration
    replicas = configuration.replica_count
    return Goal(
        service=record.name,
        gateway=gateway,
        revision=revision.replicas_of,
        replicas=replicas,
        limits=Limits.of(configuration.rollout, replicas),
        work=work,
        flow_run=flow_run,
        runtimes=runtimes_of(record) | {"docker" if configuration.image else "process"},
        stop_duration=drain_time(configuration),
    )


def drain_time(configuration: ServiceConfiguration) -> float | None:
    """Tell how long the open requests of a replica get to finish.

    Args:
        configuration: The service.

    Returns:
        Seconds; None: as long as they take.
    """
    written = configuration.stop_duration
    if written == "off":
        return None
    return DEFAULT_STOP_DURATION if written is None else float(written)


def runtimes_of(record: ServiceRecord) -> frozenset[str]:
    """Tell which runtimes replicas of a service may be found in.

    Args:
        record: Of the service.

    Returns:
        What its revisions use.
    """
    return frozenset(
        "docker" if revision.configuration.get("image") else "process" for revision in record.revisions
    )


def asked_at() -> datetime:
    """Tell when the flow run that this code runs in began, before it waited for its turn.

    Returns:
        The time, in UTC.
    """
    context = FlowRunContext.get()
    return datetime.now(timezone.utc) if context is None else context.start_time


def run_id() -> str:
    """Tell the id of the flow run that this code runs in.

    Returns:
        The id; empty outside of flow runs.
    """
    context = FlowRunContext.get()
    return "" if context is None or context.flow_run is None else str(context.flow_run.id)


@dataclass(frozen=True)
class Turn:
    """What a flow run has while it holds the limit of a service.

    Attributes:
        flow_run: Its id.
        lease: The id of its lease.
    """

    flow_run: str
    lease: str


@contextlib.contextmanager
def held(service: str) -> Iterator[Turn]:
    """Hold the limit of a service: nobody else deploys, stops or repairs it meanwhile.

    Args:
        service: The service.

    Yields:
        The turn of this flow run.
    """
    flow_run = run_id()

    def holder() -> Deploying | None:
        record = find_record(service)
        return None if record is None else record.deploying

    with lock(f"service-{service}", flow_run, holder, get_run_logger().info) as lease:
        left = holder()
        if left is not None and left.flow_run != flow_run and has_died(left):
            close_run(left.flow_run)
        yield Turn(flow_run, lease)
