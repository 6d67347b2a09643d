"""The one way to undo: whatever a deployment has left, take the service to what is wanted."""

from __future__ import annotations

from dataclasses import replace

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.controller.goal import DEFAULT_GRACE, DEFAULT_STOP_DURATION, Goal
from prefect_dstack.domain.record import LOST, Decision, PendingApproval, ServiceRecord, now
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.errors import GatewayError, HostError, NotFoundError
from prefect_dstack.gateways.routing import route_of
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.infrastructure.observation import Observation
from prefect_dstack.services.location import is_elsewhere
from prefect_dstack.services.preparation import drain_timeout, goal_for, recorded
from prefect_dstack.services.previews import end_preview
from prefect_dstack.services.publication import publish_event, publish_rejected
from prefect_dstack.services.run import ServiceRun, holding
from prefect_dstack.store.records import find_record, save_record
from prefect_dstack.store.runs import fail_paused, has_died
from prefect_dstack.tasks.gateways import create_gateway, remove_route, update_route
from prefect_dstack.tasks.replicas import remove_replica, terminate_instance

__all__ = ["bring_back", "end_approval", "restore", "restore_dead", "take_down", "withdraw"]


def restore(record: ServiceRecord, run: ServiceRun) -> ServiceRecord:
    """Restore the active revision of a service, or remove everything if it has none, and save its record.

    Args:
        record: As it is to be in the end.
        run: The flow run that does it.

    Returns:
        The record as it was saved.

    Raises:
        PrefectDstackError: If it cannot be done now.
    """
    if record.approval is not None and record.pending() is None:
        expired = Decision(approved=False, at=now(), reason="nobody approved it in time")
        return withdraw(record, run, expired)
    if is_elsewhere(record, run.infrastructure.here):
        # What a move has begun here goes; what serves there is left alone.
        take_down(record, run)
    elif record.active is None and record.approval is not None:
        pass  # nothing serves, and what waits for approval stays
    elif record.active is None:
        take_down(record, run, force=run.infrastructure.find_gateway(record.gateway) is None)
        record = record.model_copy(update={"location": None})
    else:
        bring_back(record, run)
    record = record.model_copy(update={"deploying": None})
    save_record(record)
    return record


def withdraw(record: ServiceRecord, run: ServiceRun, decision: Decision) -> ServiceRecord:
    """Remove a revision that waits for approval; what serves is left as it is.

    Args:
        record: The record of the service; its lock is held.
        run: The flow run that does it.
        decision: Why the revision is not to serve.

    Returns:
        The record as it was saved.
    """
    pending = record.approval
    if pending is None:
        return record
    record = restore(record.withdrawn(decision), run)
    end_approval(record, pending, decision, run)
    return record


def end_approval(
    record: ServiceRecord, pending: PendingApproval, decision: Decision, run: ServiceRun
) -> None:
    """Remove what else an approval that is not given any more has left, and make it known.

    Args:
        record: The record of the service, as it is now.
        pending: What was to be decided.
        decision: What became of it.
        run: The flow run that does it.
    """
    gateway = run.infrastructure.find_gateway(pending.gateway)
    if gateway is not None and pending.gateway != record.gateway:
        remove_route(gateway, record.name)
    elif gateway is not None:
        end_preview(record, gateway, run.infrastructure)
    message = f"{record.name}@{pending.revision} was not approved: {decision.reason}"
    fail_paused(pending.flow_run, message)
    run.log.info("%s", message)
    publish_rejected(record, pending.revision, decision)


def bring_back(record: ServiceRecord, run: ServiceRun, *, untouched: int | None = None) -> Goal:
    """Restore the active revision of a service to all its replicas, with even weights.

    Args:
        record: The record of the service; it has an active revision.
        run: The flow run that does it.
        untouched: Another revision, whose replicas stay as they are.

    Returns:
        What was the goal, and is reached.
    """
    active = record.revision(record.active or 0)
    prepared = recorded(record, active, run.infrastructure.sources)
    gateway = run.infrastructure.gateway(record.gateway)

    def route(state: GatewayState) -> Route:
        return route_of(prepared.routed, state, gateway.port_is_free)

    state = create_gateway(gateway, route)
    goal = goal_for(record, active, prepared, route(state), record.wanted_numbers)
    if untouched is None and record.pending() is None:
        end_preview(record, gateway, run.infrastructure)
    if untouched is not None:
        goal = replace(goal, untouched=untouched)
    run.converge(goal, gateway, record)
    update_route(gateway, record.name, route)
    return goal


def take_down(record: ServiceRecord, run: ServiceRun, *, force: bool = False) -> None:
    """Drain and remove the replicas of a service, and remove its route.

    Args:
        record: The record of the service.
        run: The flow run that does it.
        force: Go on without the gateway if that cannot be reached.

    Raises:
        GatewayError: If the gateway cannot be reached; says how to go on without it.
    """
    try:
        gateway = run.infrastructure.gateway(record.gateway)
        gateway.state()
    except (GatewayError, HostError, NotFoundError) as error:
        if not force:
            raise GatewayError(
                f"{record.name}: gateway '{record.gateway}' cannot be reached: {error}; if it is gone for "
                f"good: prefect-dstack stop {record.name} --force"
            ) from error
        _take_down_without_gateway(record, run, error)
        return
    goal = Goal(
        service=record.name,
        revision=None,
        numbers=(),
        limits=Limits(max_surge=0, max_unavailable=0),
        stop_duration=_stop_duration(record),
    )
    observation = run.converge(goal, gateway, record)
    remove_route(gateway, record.name)
    _warn_of_leftovers(record, observation, run)


def _stop_duration(record: ServiceRecord) -> float | None:
    """Return the seconds that the requests of a service which is taken down get to finish."""
    # Of a stop, the revision that served is the one that was stopped; of a failed deployment, the last one.
    stopped = [revision for revision in record.revisions if revision.outcome == "stopped"]
    for revision in reversed(stopped or record.revisions):
        configuration = load_configuration(revision.configuration, name=record.name)
        if isinstance(configuration, ServiceConfiguration):
            return drain_timeout(configuration)
    return DEFAULT_STOP_DURATION


def _take_down_without_gateway(record: ServiceRecord, run: ServiceRun, error: Exception) -> None:
    run.log.warning(
        "%s: gateway '%s' is left as it is (%s): should it come back, prefect-dstack reconcile takes the "
        "route and its tunnels away",
        *(record.name, record.gateway, error),
    )
    infrastructure = run.infrastructure
    observation = infrastructure.observe(record.name, record.runtimes)
    for found in observation.found:
        remove_replica(infrastructure, found, DEFAULT_GRACE)
    instances = [found.instance for found in observation.found]
    for instance in [*instances, *(instance for instance, _ in observation.empty)]:
        if infrastructure.is_owned(instance):
            terminate_instance(infrastructure, instance)
    _warn_of_leftovers(record, observation, run)


def _warn_of_leftovers(record: ServiceRecord, observation: Observation, run: ServiceRun) -> None:
    for name, reason in (observation.unreachable | observation.unlisted).items():
        run.log.warning(
            "%s: what may be left on %s goes with the next prefect-dstack reconcile: %s",
            *(record.name, name, reason),
        )


def restore_dead(name: str, flow_run: str | None = None, reason: str = LOST) -> None:
    """Undo what a deployment that died has left of a service; what served before serves again.

    Args:
        name: The service.
        flow_run: Only if this flow run was the one that deployed it; None: whichever it was.
        reason: Why the deployment did not make it, for the history.
    """
    with holding(name) as run:
        record = find_record(name)
        if record is None or record.deploying is None:
            return
        dead, here = record.deploying, run.infrastructure.here
        if dead.flow_run != flow_run and not has_died(dead):
            return
        place = dead.location or record.location
        if place is not None and place.id != here.id:
            run.log.warning("%s: what is left of it is on %s: prefect-dstack reconcile there", name, place)
            return
        if dead.revision is not None:
            record = record.failed(dead.revision, reason)
        record = restore(record, run)
        serves = record.active is not None
        run.log.info("%s: %s", name, f"{name}@{record.active} serves" if serves else "is stopped")
        publish_event("restored", name, record.active, {"reason": reason})
