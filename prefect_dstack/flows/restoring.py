"""The one way to undo: whatever a deployment has left, take the service to what shall serve."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.record import LOST, ServiceRecord
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.errors import GatewayError, HostError, NotFoundError
from prefect_dstack.flows.convergence import DEFAULT_GRACE, DEFAULT_STOP_DURATION, Goal, converge
from prefect_dstack.flows.goals import drain_time, goal_for, held, runtimes_of
from prefect_dstack.flows.preparation import recorded_workload
from prefect_dstack.flows.routing import route_of
from prefect_dstack.flows.served import served_flow
from prefect_dstack.tasks import connections, gateway_places, observation
from prefect_dstack.tasks.gateways import create_gateway, register_route, remove_route
from prefect_dstack.tasks.observation import Sight
from prefect_dstack.tasks.records import all_records, find_record, save_record
from prefect_dstack.tasks.replicas import remove_replica, terminate_instance
from prefect_dstack.tasks.runs import has_died, is_this_process

__all__ = ["bring_back", "restore", "restore_hook", "restore_service"]


def restore(record: ServiceRecord, flow_run: str) -> ServiceRecord:
    """Take a service to its active revision, or off the air if it has none, and save its record.

    Args:
        record: As it shall be in the end.
        flow_run: Stamped on what has to be created.

    Returns:
        The record as it was saved.

    Raises:
        PrefectDstackError: If it cannot be done now.
    """
    if record.active is None:
        take_off(record, flow_run)
    else:
        bring_back(record, flow_run)
    record = record.model_copy(update={"deploying": None})
    save_record(record)
    return record


def bring_back(record: ServiceRecord, flow_run: str) -> Goal:
    """Take a service to its active revision at full strength, with even weights.

    Args:
        record: Of the service; it has an active revision.
        flow_run: Stamped on what has to be created.

    Returns:
        What was the goal, and is reached.
    """
    active = record.revision(record.active or 0)
    work = recorded_workload(record, active)
    goal = goal_for(record, active, work, record.gateway, flow_run)
    state = create_gateway(record.gateway)
    goal.route = route_of(work.configuration, gateway_places.gateway(record.gateway), state)
    converge(goal)
    register_route(record.gateway, goal.route)
    return goal


def take_off(record: ServiceRecord, flow_run: str, *, force: bool = False) -> None:
    """Take a service off the air: its replicas drained and removed, its route gone.

    Args:
        record: Of the service.
        flow_run: The id of the flow run.
        force: Go on without the gateway if that cannot be reached.

    Raises:
        GatewayError: If the gateway cannot be reached; says how to go on without it.
    """
    try:
        gateway_places.state(record.gateway)
    except (GatewayError, HostError, NotFoundError) as error:
        if not force:
            raise GatewayError(
                f"{record.name}: gateway '{record.gateway}' cannot be reached: {error}; if it is gone for "
                f"good: prefect-dstack stop {record.name} --force"
            ) from error
        _take_off_without_gateway(record, error)
        return
    goal = Goal(
        service=record.name,
        gateway=record.gateway,
        revision=None,
        replicas=0,
        limits=Limits(max_surge=0, max_unavailable=0),
        flow_run=flow_run,
        runtimes=runtimes_of(record),
        stop_duration=_stop_duration(record),
    )
    sight = converge(goal)
    if gateway_places.state(record.gateway) is not None:
        remove_route(record.gateway, record.name)
    _warn_of_leftovers(record, sight)


def _stop_duration(record: ServiceRecord) -> float | None:
    """Tell how long the requests of a service that is taken off the air get to finish."""
    # Of a stop, the revision that served is the one that was stopped; of a failed deployment, the last one.
    stopped = [revision for revision in record.revisions if revision.outcome == "stopped"]
    for revision in reversed(stopped or record.revisions):
        configuration = load_configuration(revision.configuration, name=record.name)
        if isinstance(configuration, ServiceConfiguration):
            return drain_time(configuration)
    return DEFAULT_STOP_DURATION


def _take_off_without_gateway(record: ServiceRecord, error: Exception) -> None:
    logger = get_run_logger()
    logger.warning(
        "%s: gateway '%s' is left as it is (%s): should it come back, prefect-dstack reconcile takes the "
        "route and its tunnels away",
        *(record.name, record.gateway, error),
    )
    runtimes = runtimes_of(record)
    sight = observation.look(record.name, observation.instances_of(record.name, runtimes), runtimes)
    for found in sight.found:
        remove_replica(found.instance, found.replica, DEFAULT_GRACE)
    for instance in [*(found.instance for found in sight.found), *(instance for instance, _ in sight.empty)]:
        if connections.backends()[instance.backend].stamp(instance) is not None:
            terminate_instance(instance)
    _warn_of_leftovers(record, sight)


def _warn_of_leftovers(record: ServiceRecord, sight: Sight) -> None:
    for name, reason in (sight.unreachable | sight.unlisted).items():
        get_run_logger().warning(
            "%s: what may be left on %s goes with the next prefect-dstack reconcile: %s",
            *(record.name, name, reason),
        )


@served_flow(name="restore-service", flow_run_name="restore {name}")
def restore_service(name: str, flow_run: str | None = None, reason: str = LOST) -> None:
    """Undo what a deployment that died has left of a service; what served before serves again.

    Args:
        name: The service.
        flow_run: Only if this flow run was the one that deployed it; None: whichever it was.
        reason: Why the deployment did not make it, for the history.
    """
    logger = get_run_logger()
    with held(name) as turn:
        record = find_record(name)
        if record is None or record.deploying is None:
            return
        dead = record.deploying
        if dead.flow_run != flow_run and not has_died(dead):
            return
        if dead.revision is not None:
            record = record.failed(dead.revision, reason)
        restore(record, turn.flow_run)
        logger.info("%s: %s", name, f"{name}@{record.active} serves" if record.active else "is off the air")


def restore_hook(flow: Any, flow_run: Any, state: Any) -> None:
    """Undo a deployment that failed, was cancelled or crashed; it may run in another process than that.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: How it ended.
    """
    for record in all_records():
        if record.deploying is not None and record.deploying.flow_run == str(flow_run.id):
            reason = LOST
            if state.is_cancelling() or state.is_cancelled():
                reason = "it was cancelled"
            elif state.is_crashed() and is_this_process(record.deploying):
                reason = "it was interrupted"
            restore_service(record.name, str(flow_run.id), reason)
