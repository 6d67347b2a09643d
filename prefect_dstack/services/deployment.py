"""From a revision to what serves: deploying, rolling back and scaling are this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from prefect_dstack.configurations import Canary, ServiceConfiguration
from prefect_dstack.controller.convergence import is_reached
from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.record import (
    DesiredReplicas,
    Endpoint,
    Revision,
    ServiceRecord,
)
from prefect_dstack.domain.retrying import capacity_timeout
from prefect_dstack.errors import DeploymentError, HostUnreachableError, PrefectDstackError
from prefect_dstack.gateways.routing import endpoint_of, route_of
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.infrastructure.certificates import check_files
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.bundles import prune_bundles
from prefect_dstack.services.canary import try_canary
from prefect_dstack.services.certificates import ensure_certificates
from prefect_dstack.services.evaluation import Evaluate, evaluate_release
from prefect_dstack.services.failures import keep_failure_log
from prefect_dstack.services.location import is_elsewhere, location_of, refuse_elsewhere
from prefect_dstack.services.preparation import (
    PreparedService,
    desired_replicas,
    goal_for,
    next_revision,
)
from prefect_dstack.services.proof import begin_proof
from prefect_dstack.services.publication import (
    EventName,
    publish_deployed,
    publish_event,
    publish_not_serving,
)
from prefect_dstack.services.restoration import bring_back, restore
from prefect_dstack.services.run import ServiceRun, requested_at
from prefect_dstack.store.records import save_record
from prefect_dstack.store.runs import deploying
from prefect_dstack.store.tokens import has_token
from prefect_dstack.tasks.canary import share_traffic
from prefect_dstack.tasks.gateways import create_gateway, remove_route, update_route

__all__ = ["deploy", "put_revision", "scale", "superseded"]


def superseded(record: ServiceRecord, run: ServiceRun) -> Endpoint | None:
    """Return the endpoint of a later request, which was served while this flow run waited.

    Args:
        record: The record of the service; its lock is held.
        run: The flow run.

    Returns:
        Where the service answers; None if nothing was asked for later than this flow run began.

    Raises:
        DeploymentError: If it was stopped since.
    """
    if record.asked_at is None or record.asked_at <= requested_at():
        return None
    if record.endpoint is None or record.active is None:
        raise DeploymentError(f"{record.name}: was stopped after this flow run began; nothing was done")
    run.log.warning(
        "%s: superseded by %s@%d, which was asked for later; nothing was done",
        *(record.name, record.name, record.active),
    )
    return record.endpoint.model_copy(update={"changed": False, "superseded": True})


def deploy(
    record: ServiceRecord,
    prepared: PreparedService,
    run: ServiceRun,
    *,
    force: bool,
    move: bool,
    evaluate: Evaluate | None = None,
) -> Endpoint:
    """Make what was prepared serve, unless it does already.

    Args:
        record: The record of the service; its lock is held.
        prepared: The service.
        run: The flow run.
        force: Replace the replicas even if nothing has changed.
        move: Whether a service of another machine is moved to this one.
        evaluate: Judges new replicas before they get requests; None: probes are enough.

    Returns:
        Where the service answers.
    """
    here = run.infrastructure.here
    moves = is_elsewhere(record, here)
    if moves and not move:
        refuse_elsewhere(record, here, "apply", movable=True)
    desired = desired_replicas(record, prepared.configuration)
    revision = next_revision(record, prepared, run.flow_run)
    active = None if moves else record.active_revision
    if active is not None and active.workload == revision.workload and not force:
        revision = revision.model_copy(update={"replicas_of": active.replicas_of})
        if active.settings == revision.settings and _is_routed(record, prepared, run):
            return scale(record, prepared, run, desired)
    return put_revision(record, revision, prepared, run, desired=desired, evaluate=evaluate)


def scale(
    record: ServiceRecord,
    prepared: PreparedService,
    run: ServiceRun,
    desired: DesiredReplicas,
) -> Endpoint:
    """Take the active revision to another number of replicas; that makes no new revision.

    Args:
        record: The record of the service; its lock is held, and it serves.
        prepared: The service as it serves.
        run: The flow run.
        desired: How many replicas are wanted, who wants them and why.

    Returns:
        Where the service answers; unchanged if there was nothing to do.

    Raises:
        PrefectDstackError: If it cannot be done; the number before stays wanted.
    """
    active, served_at = record.active_revision, record.endpoint
    if active is None or served_at is None:
        raise DeploymentError(f"{record.name}: does not serve, so it cannot be scaled")
    refuse_elsewhere(record, run.infrastructure.here, "scale")
    gateway = run.infrastructure.gateway(record.gateway)
    route = _router(prepared.routed, gateway)
    state = gateway.state() or gateway.initial_state()
    goal = goal_for(record, active, prepared, route(state), desired.replicas)
    if gateway.running() and is_reached(goal, run.world(goal, gateway, record)):
        if record.desired != desired:
            save_record(record.scaled(desired))
        run.log.info("%s@%d: unchanged, nothing to do", record.name, active.number)
        publish_event("unchanged", record.name, active.number, {"replicas": desired.replicas})
        return served_at.model_copy(update={"changed": False})
    before = record.wanted_replicas
    if before != desired.replicas:
        why = f": {desired.reason}" if desired.reason else ""
        run.log.info("%s@%d: scaling %d → %d%s", record.name, active.number, before, desired.replicas, why)
    mine = deploying(active.number, run.flow_run, run.lease)
    record = record.model_copy(update={"deploying": mine})
    save_record(record)
    try:
        create_gateway(gateway, route)
        observation = run.converge(goal, gateway, record)
        update_route(gateway, record.name, route)
    except Exception as error:
        raise _undone(record, active, error, run, prepared) from error
    names = sorted(found.replica.name for found in observation.found)
    endpoint = served_at.model_copy(update={"replicas": names, "changed": True})
    record = record.model_copy(update={"deploying": None, "endpoint": endpoint}).scaled(desired)
    save_record(record)
    publish_deployed(endpoint, gateway.name, observation.found, "scaled")
    return endpoint


def put_revision(
    record: ServiceRecord,
    revision: Revision,
    prepared: PreparedService,
    run: ServiceRun,
    *,
    desired: DesiredReplicas,
    at_once: bool = False,
    evaluate: Evaluate | None = None,
    event: EventName = "deployed",
) -> Endpoint:
    """Make a revision the one that serves; what served before serves on if it fails.

    Args:
        record: The record of the service; its lock is held.
        revision: The revision, new or an earlier one.
        prepared: What it is made of.
        run: The flow run.
        desired: How many replicas it is to have.
        at_once: Whether a canary is left out.
        evaluate: Judges new replicas before they get requests; None: probes are enough.
        event: The event that is emitted in the end.

    Returns:
        Where the service answers.

    Raises:
        PrefectDstackError: If it does not make it; the message says why, and what serves now.
    """
    infrastructure, log = run.infrastructure, run.log
    moves = is_elsewhere(record, infrastructure.here)
    active = None if moves else record.active_revision
    gateway = infrastructure.gateway_for(prepared.configuration, record.gateway if active else None)
    gateway.require_backend()
    route = _router(prepared.routed, gateway)
    state = gateway.state() or gateway.initial_state()
    # Asked here to refuse what cannot be before anything is created; it is taken below.
    first = route(state)
    check_files(gateway, [first])
    goal = goal_for(record, revision, prepared, first, desired.replicas)
    goal = replace(goal, capacity_timeout=capacity_timeout(prepared.configuration.retry))
    keeps = active is not None and active.replicas_of == revision.replicas_of
    offers = None
    if not keeps and (active is None or goal.limits.max_surge) and not goal.capacity_timeout:
        offers = infrastructure.offers(prepared.spec.requirements)
    mine = deploying(revision.number, run.flow_run, run.lease)
    if moves:
        mine = mine.model_copy(update={"location": infrastructure.here})
    before = {known.bundle for known in record.revisions}
    record = record.begun(revision, mine, prepared.configuration.retain)
    if record.active is None:
        record = record.model_copy(update={"gateway": gateway.name})
    save_record(record, prepared.own_environment)
    kept = active if keeps else None
    log.info("%s@%d: %s", record.name, revision.number, _plan(goal, kept, record.name))
    beside = active is not None and not keeps and not at_once and record.gateway == gateway.name
    try:
        state = create_gateway(gateway, route)
        goal = _with_route(goal, route(state))
        proof = begin_proof(goal, prepared, gateway, record, run, keeps=keeps)
        canary = beside and prepared.configuration.rollout.strategy == "canary"
        terms = (prepared.configuration.rollout.canary or Canary()) if canary else None
        if not keeps and (evaluate is not None or terms is not None):
            _try(goal, evaluate, terms, gateway, record, run)
            offers = None  # trying takes its time: what could be had before may be gone
        observation = run.converge(goal, gateway, record, offers)
        final = update_route(gateway, record.name, route)
        ensure_certificates(infrastructure, gateway, [final])
        replicas = sorted(found.replica.name for found in observation.found)
        endpoint = endpoint_of(
            prepared.configuration,
            final,
            gateway.state() or state,
            gateway.address,
            revision.number,
            replicas,
        )
        proof.end(endpoint, final)
    except Exception as error:
        raise _undone(record, revision, error, run, prepared, gateway) from error
    if active is not None:
        _leave_other_gateway(record, gateway, infrastructure)
    record = _settled(record, gateway, run, moves=moves).served(revision.number, endpoint).scaled(desired)
    save_record(record)
    publish_deployed(endpoint, gateway.name, observation.found, event)
    if before - {known.bundle for known in record.revisions}:
        prune_bundles(infrastructure)
    if active is None:
        _explain_port(prepared.configuration, final, gateway, run)
    log.info("%s@%d: serves at %s", record.name, revision.number, endpoint.url)
    _warn_of_missing_token(final, gateway, run)
    return endpoint


def _try(
    goal: Goal,
    evaluate: Evaluate | None,
    terms: Canary | None,
    gateway: ManagedGateway,
    record: ServiceRecord,
    run: ServiceRun,
) -> None:
    """Have a revision evaluated without traffic, then with a share of it, as far as either is asked for."""
    if evaluate is not None:
        evaluate_release(evaluate, goal, gateway, record, run)
    if terms is not None:
        try_canary(goal, bring_back(record, run), terms, gateway, record, run)
    elif evaluate is not None:
        share_traffic(gateway, record.name, {})


def _warn_of_missing_token(route: Route, gateway: ManagedGateway, run: ServiceRun) -> None:
    if route.auth and not has_token(gateway.name, route.service):
        run.log.warning(
            "%s: needs a token and has none; make one with: prefect-dstack token create --service %s",
            *(route.service, route.service),
        )


def _plan(goal: Goal, kept: Revision | None, service: str) -> str:
    if kept is not None:
        return f"keeps the replicas of {service}@{kept.number}"
    return f"deploying {goal.replicas} {'replica' if goal.replicas == 1 else 'replicas'}"


def _explain_port(
    configuration: ServiceConfiguration, route: Route, gateway: ManagedGateway, run: ServiceRun
) -> None:
    state = gateway.state()
    if state is None or configuration.port.gateway_port is not None or route.port == state.base_port:
        return
    others = {other.port for name, other in state.routes.items() if name != route.service}
    if state.base_port in others or not gateway.port_is_free(state.base_port):
        run.log.info(
            "%s: published on port %d, as port %d of gateway '%s' is taken",
            *(route.service, route.port, state.base_port, state.name),
        )


def _settled(
    record: ServiceRecord, gateway: ManagedGateway, run: ServiceRun, *, moves: bool
) -> ServiceRecord:
    """Note where the service is now, and where something of it may have stayed."""
    here = run.infrastructure.here
    left = [place for place in record.left_behind if place.id != here.id]
    if moves and record.location is not None:
        left = [*left, record.location]
        run.log.warning(
            "%s: what still runs on %s is ended by the next prefect-dstack reconcile there",
            *(record.name, record.location),
        )
    return record.model_copy(
        update={
            "gateway": gateway.name,
            "asked_at": requested_at(),
            "location": location_of(run.infrastructure, gateway),
            "left_behind": left,
        }
    )


def _leave_other_gateway(
    record: ServiceRecord, gateway: ManagedGateway, infrastructure: Infrastructure
) -> None:
    """Remove the route from the gateway that a service had before, unless that is gone or the same one."""
    before = infrastructure.find_gateway(record.gateway)
    if before is not None and before.name != gateway.name:
        remove_route(before, record.name)


def _router(configuration: ServiceConfiguration, gateway: ManagedGateway) -> Callable[[GatewayState], Route]:
    return lambda state: route_of(configuration, state, gateway.port_is_free)


def _with_route(goal: Goal, route: Route) -> Goal:
    return goal if goal.template is None else replace(goal, template=replace(goal.template, route=route))


def _is_routed(record: ServiceRecord, prepared: PreparedService, run: ServiceRun) -> bool:
    """Return whether the route is what its gateway's own settings make of it today."""
    gateway = run.infrastructure.find_gateway(record.gateway)
    state = None if gateway is None else gateway.state()
    known = None if state is None else state.routes.get(record.name)
    if gateway is None or state is None or known is None or not gateway.running():
        return False
    wanted = _router(prepared.routed, gateway)(state)
    return wanted == known.model_copy(update={"tokens": {}, "replicas": {}})


def _undone(
    record: ServiceRecord,
    revision: Revision,
    error: Exception,
    run: ServiceRun,
    prepared: PreparedService,
    gateway: ManagedGateway | None = None,
) -> Exception:
    """Bring back what served before, and find the words for what happened."""
    reason = _reason(error)
    name = f"{record.name}@{revision.number}"
    failed = record.failed(revision.number, reason)
    keep_failure_log(run.infrastructure, record, revision.number, prepared.environment)
    try:
        restored = restore(failed, run)
        if gateway is not None and gateway.name != record.gateway:
            remove_route(gateway, record.name)
    except Exception as failure:  # noqa: BLE001 - the reason of the deployment's failure comes first
        run.log.error("%s: cannot undo all of it, run prefect-dstack reconcile: %s", name, failure)
        after = f"and not all of it could be undone: {failure}"
    else:
        where = " where it can be reached" if isinstance(error, HostUnreachableError) else ""
        gone = f"nothing of it is left{where}"
        after = f"{record.name}@{record.active} serves on" if record.active else gone
        publish_not_serving(restored, "failed", revision.number, reason)
    message = f"{name} failed: {reason}; {after}"
    return error.with_message(message) if isinstance(error, PrefectDstackError) else DeploymentError(message)


def _reason(error: Exception) -> str:
    """Return why a deployment failed, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
