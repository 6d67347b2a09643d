"""From a revision to what serves: deploying, rolling back and scaling are this."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect_dstack.backends.base import Offer
from prefect_dstack.configurations import Canary, ServiceConfiguration
from prefect_dstack.controller.convergence import is_reached
from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.placement import on_one_network
from prefect_dstack.domain.record import (
    AUTOSCALER,
    Decision,
    DesiredReplicas,
    Endpoint,
    PendingApproval,
    Revision,
    ServiceRecord,
    now,
)
from prefect_dstack.domain.retrying import capacity_timeout
from prefect_dstack.domain.revision import compared, moved
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.errors import (
    DeploymentError,
    HostUnreachableError,
    PrefectDstackError,
    UserError,
)
from prefect_dstack.gateways.routing import endpoint_of, route_of
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.infrastructure.certificates import check_files
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.approval import prepare_approval
from prefect_dstack.services.bundles import prune_bundles
from prefect_dstack.services.canary import try_canary
from prefect_dstack.services.certificates import ensure_certificates
from prefect_dstack.services.evaluation import Evaluate, evaluate_release
from prefect_dstack.services.failures import keep_failure_log
from prefect_dstack.services.image_versions import running_image
from prefect_dstack.services.lineage import materialize_revision
from prefect_dstack.services.location import (
    is_elsewhere,
    location_of,
    refuse_elsewhere,
    refuse_gateway_elsewhere,
)
from prefect_dstack.services.preparation import (
    PreparedService,
    desired_replicas,
    goal_for,
    next_revision,
    recorded,
    this_user,
)
from prefect_dstack.services.promotion import how_to_approve
from prefect_dstack.services.proof import begin_proof
from prefect_dstack.services.publication import (
    EventName,
    publish_approval_requested,
    publish_deployed,
    publish_event,
    publish_not_serving,
)
from prefect_dstack.services.restoration import bring_back, end_approval, restore, withdraw
from prefect_dstack.services.run import ServiceRun, requested_at
from prefect_dstack.services.selection import of_present_replicas
from prefect_dstack.store.records import find_record, save_record
from prefect_dstack.store.runs import deploying, rename_run
from prefect_dstack.store.tokens import has_token
from prefect_dstack.tasks.gateways import create_gateway, remove_route, update_route

__all__ = ["deploy", "put_revision", "scale", "superseded", "waiting_endpoint"]

CLOCK_DIFFERENCE = timedelta(minutes=1)
"""By so much the clocks of two machines may differ."""


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
    # What was asked for in the future was so by a clock that has been set since.
    latest = datetime.now(UTC) + CLOCK_DIFFERENCE
    if record.asked_at is None or not requested_at() < record.asked_at <= latest:
        return None
    if record.endpoint is None or record.active is None:
        raise DeploymentError(f"{record.name}: was stopped after this flow run began; nothing was done")
    run.log.warning(
        "%s: superseded by %s@%d, which was asked for later; nothing was done",
        *(record.name, record.name, record.active),
    )
    return record.endpoint.model_copy(update={"changed": False, "superseded": True})


def waiting_endpoint(record: ServiceRecord, run: ServiceRun) -> Endpoint | None:
    """Return where a service answers while the revision that this flow run deployed waits for approval.

    Args:
        record: The record of the service; its lock is held.
        run: The flow run, which was suspended and has begun anew.

    Returns:
        Where it answers; None if nothing that this flow run deployed waits.
    """
    pending = record.pending()
    if pending is None or pending.flow_run != run.flow_run:
        return None
    return _endpoint_beside(record, pending, run)


def deploy(
    record: ServiceRecord,
    prepared: PreparedService,
    run: ServiceRun,
    *,
    force: bool,
    move: bool,
    evaluate: Evaluate | None = None,
    approval: bool = False,
) -> Endpoint:
    """Deploy what was prepared, unless it already serves.

    Args:
        record: The record of the service; its lock is held.
        prepared: The service.
        run: The flow run.
        force: Replace the replicas even if nothing has changed.
        move: Whether a service of another machine is moved to this one.
        evaluate: Judges new replicas before they get requests; None: probes are enough.
        approval: Whether new replicas wait for a person before they get requests.

    Returns:
        Where the service answers.
    """
    here = run.infrastructure.here
    moves = is_elsewhere(record, here)
    if moves and not move:
        refuse_elsewhere(record, here, "apply", movable=True)
    desired = desired_replicas(record, prepared.configuration)
    revision = next_revision(record, prepared, run.flow_run)
    if moves and approval:
        raise UserError(
            f"{record.name}: cannot be moved and wait for approval at once; move it without an approval first"
        )
    pending = record.pending()
    if pending is not None and not force and _is_same(record.revision(pending.revision), revision):
        run.log.info("%s@%d: waits for approval already", record.name, pending.revision)
        return _endpoint_beside(record, pending, run)
    active = None if moves else record.active_revision
    if active is not None:
        seen = compared(active, revision)
        if prepared.pull and any(prepared.images) and active.workload == revision.workload:
            was, newest = running_image(record, prepared, run.infrastructure)
            seen.append(f"image {moved(was, newest)}")
            force = force or was != newest
        run.log.info("%s@%d: %s", record.name, active.number, ", ".join(seen))
    if active is not None and active.workload == revision.workload and not force:
        revision = revision.model_copy(update={"replicas_of": active.replicas_of})
        if active.settings == revision.settings and _is_routed(record, prepared, run):
            record = withdraw(record, run, _replaced("by a deployment of what serves already"))
            return scale(record, prepared, run, desired)
    return put_revision(
        record, revision, prepared, run, desired=desired, evaluate=evaluate, approval=approval
    )


def scale(
    record: ServiceRecord,
    prepared: PreparedService,
    run: ServiceRun,
    desired: DesiredReplicas,
    leaving: Collection[int] = (),
) -> Endpoint:
    """Scale the active revision to another number of replicas; this creates no revision.

    Args:
        record: The record of the service; its lock is held, and it serves.
        prepared: The service as it serves.
        run: The flow run.
        desired: How many replicas are wanted, who wants them and why.
        leaving: The numbers of replicas that others take the place of, and serve before these are drained.

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
    desired = of_present_replicas(record, desired, active, gateway, leaving)
    goal = goal_for(record, active, prepared, route(state), desired.numbers(prepared.groups))
    if leaving:
        goal = replace(goal, limits=Limits(max_surge=max(len(leaving), goal.limits.max_surge)))
    if gateway.running() and is_reached(goal, run.world(goal, gateway, record)):
        if record.desired != desired:
            save_record(record.scaled(desired))
        run.log.info("%s@%d: has as many replicas already", record.name, active.number)
        publish_event("unchanged", record.name, active.number, {"replicas": desired.replicas})
        return served_at.model_copy(update={"changed": False})
    wanted = record.scaled(desired).desired or desired
    if record.wanted_replicas != goal.replicas:
        run.log.info("%s@%d: scaling %s", record.name, active.number, wanted.change)
        verb = "autoscale" if wanted.set_by == AUTOSCALER else "scale"
        rename_run(run.flow_run, f"{verb} {record.name} {wanted.change}")
    mine = deploying(active.number, run.flow_run, run.lease)
    record = record.abandoned().model_copy(update={"deploying": mine})
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
    if leaving:
        publish_deployed(record, observation.found, "restored", {"reason": "replicas were replaced"})
    else:
        publish_deployed(record, observation.found, "scaled", _scaling(wanted))
    return endpoint


def _scaling(desired: DesiredReplicas) -> dict[str, Any]:
    return {
        "before": desired.before,
        "after": desired.replicas,
        "set_by": desired.set_by,
        "reason": desired.reason,
    }


def put_revision(
    record: ServiceRecord,
    revision: Revision,
    prepared: PreparedService,
    run: ServiceRun,
    *,
    desired: DesiredReplicas,
    at_once: bool = False,
    evaluate: Evaluate | None = None,
    approval: bool = False,
    event: EventName = "deployed",
) -> Endpoint:
    """Make a revision serve; what served before keeps serving if it fails.

    Args:
        record: The record of the service; its lock is held.
        revision: The revision, new or an earlier one.
        prepared: What it is made of.
        run: The flow run.
        desired: How many replicas it is to have.
        at_once: Whether a canary is left out.
        evaluate: Judges new replicas before they get requests, and at the steps of a canary; None: probes
            are enough.
        approval: Whether new replicas wait for a person before they get requests.
        event: The event that is emitted in the end.

    Returns:
        Where the service answers; what served before if the revision waits for approval.

    Raises:
        PrefectDstackError: If it does not make it; the message says why, and what serves now.
    """
    infrastructure, log = run.infrastructure, run.log
    moves = is_elsewhere(record, infrastructure.here)
    active = None if moves else record.active_revision
    gateway = infrastructure.gateway_for(prepared.configuration, record.gateway if active else None)
    gateway.require_backend()
    refuse_gateway_elsewhere(gateway, infrastructure.here, "use")
    route = _router(prepared.routed, gateway)
    state = gateway.state() or gateway.initial_state()
    # Asked here to refuse what cannot be before anything is created; it is taken below.
    first = route(state)
    check_files(gateway, [first])
    found, record = record, _replacing(record, revision)
    keeps = active is not None and active.replicas_of == revision.replicas_of
    desired = of_present_replicas(record, desired, revision, gateway)
    goal = goal_for(record, revision, prepared, first, desired.numbers(prepared.groups))
    goal = replace(goal, capacity_timeout=capacity_timeout(prepared.configuration.retry))
    offers = None
    if not keeps and (active is None or goal.limits.max_surge) and not goal.capacity_timeout:
        offers = _offers(goal, infrastructure)
    mine = deploying(revision.number, run.flow_run, run.lease)
    if moves:
        mine = mine.model_copy(update={"location": infrastructure.here})
    before = {known.bundle for known in record.revisions}
    record = record.begun(revision, mine, prepared.configuration.retain)
    if record.active is None:
        record = record.model_copy(update={"gateway": gateway.name})
    save_record(record, prepared.own_environment)
    _end_replaced(found, record, revision, run)
    kept = active if keeps else None
    log.info("%s@%d: %s", record.name, revision.number, _plan(desired, kept, record.name))
    beside = active is not None and not keeps and not at_once and record.gateway == gateway.name
    try:
        state = create_gateway(gateway, route)
        goal = _with_route(goal, route(state))
        proof = begin_proof(goal, prepared, gateway, record, run, keeps=keeps)
        canary = beside and prepared.configuration.rollout.strategy == "canary"
        terms = (prepared.configuration.rollout.canary or Canary()) if canary else None
        if not keeps and (evaluate is not None or approval or terms is not None):
            record, waits = _try(goal, evaluate, terms, approval, prepared, gateway, record, run)
            if waits is not None:
                return _wait_for_approval(record, waits, revision, prepared, gateway, run)
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
    publish_deployed(record, observation.found, event)
    materialize_revision(revision, endpoint)
    if dropped := before - {known.bundle for known in record.revisions}:
        prune_bundles(infrastructure, among=dropped)
    if active is None:
        _explain_port(prepared.configuration, final, gateway, run)
    log.info("%s@%d: serves at %s", record.name, revision.number, endpoint.url)
    _warn_of_missing_token(final, gateway, run)
    return endpoint


def _offers(goal: Goal, infrastructure: Infrastructure) -> list[Sequence[Offer]]:
    """Ask where the replicas of each group may run.

    Raises:
        NoOfferError: If there is no machine for one of them.
    """
    offers = [infrastructure.offers(template.spec.requirements) for template in goal.templates]
    if not goal.interconnected:
        return list(offers)
    known = dict(enumerate(offers))
    return list(on_one_network(goal.service, known, dict.fromkeys(known, 1)).values())


def _try(
    goal: Goal,
    evaluate: Evaluate | None,
    terms: Canary | None,
    approval: bool,
    prepared: PreparedService,
    gateway: ManagedGateway,
    record: ServiceRecord,
    run: ServiceRun,
) -> tuple[ServiceRecord, PendingApproval | None]:
    """Have a revision evaluated without traffic, approved, and given a share of it, as far as each is wanted.

    Returns:
        The record with what was found; what waits for a person, who is asked before traffic is shared.
    """
    revision = goal.revision or 0
    # What has been approved was evaluated before that.
    if evaluate is not None and record.revision(revision).evaluation is None:
        record = evaluate_release(evaluate, goal, gateway, record, run)
    if approval:
        return record, prepare_approval(goal, prepared, gateway, record, run)
    if terms is not None:
        old = bring_back(record, run, untouched=revision)
        record = try_canary(goal, old, terms, evaluate, gateway, record, run)
    return record, None


def _replacing(record: ServiceRecord, revision: Revision) -> ServiceRecord:
    """Return the record without what waits for approval, as a revision takes its place, or is that one."""
    if record.approval is None or record.approval.revision == revision.number:
        return record.model_copy(update={"approval": None})
    return record.withdrawn(_replaced(f"by {record.name}@{revision.number}"))


def _end_replaced(before: ServiceRecord, record: ServiceRecord, revision: Revision, run: ServiceRun) -> None:
    pending = before.approval
    if pending is not None and pending.revision != revision.number:
        end_approval(record, pending, _replaced(f"by {record.name}@{revision.number}"), run)


def _wait_for_approval(
    record: ServiceRecord,
    pending: PendingApproval,
    revision: Revision,
    prepared: PreparedService,
    gateway: ManagedGateway,
    run: ServiceRun,
) -> Endpoint:
    """Leave a revision that is ready to a person's decision; what served before serves on."""
    if record.active is None:
        record = record.model_copy(update={"location": location_of(run.infrastructure, gateway)})
    record = record.waiting(pending)
    save_record(record)
    run.log.info(
        "%s@%d: waits for approval until %s, and answers at %s on %s: %s",
        *(record.name, revision.number, pending.until, pending.private_url, pending.machine),
        how_to_approve(record.name),
    )
    publish_approval_requested(record, pending)
    return _endpoint_beside(record, pending, run)


def _endpoint_beside(record: ServiceRecord, pending: PendingApproval, run: ServiceRun) -> Endpoint:
    """Return where a service answers while a revision of it waits."""
    if record.endpoint is not None:
        return record.endpoint.model_copy(update={"changed": False, "waiting": pending})
    prepared = recorded(record, record.revision(pending.revision), run.infrastructure.sources)
    gateway = run.infrastructure.gateway(record.gateway)
    state = gateway.state() or gateway.initial_state()
    route = _router(prepared.routed, gateway)(state)
    endpoint = endpoint_of(prepared.configuration, route, state, gateway.address, pending.revision, [])
    return endpoint.model_copy(update={"changed": False, "waiting": pending})


def _is_same(waiting: Revision, revision: Revision) -> bool:
    return (waiting.workload, waiting.settings) == (revision.workload, revision.settings)


def _replaced(how: str) -> Decision:
    return Decision(approved=False, by=this_user(), at=now(), reason=f"it was replaced {how}")


def _warn_of_missing_token(route: Route, gateway: ManagedGateway, run: ServiceRun) -> None:
    if route.auth and not has_token(gateway.name, route.service):
        run.log.warning(
            "%s: needs a token and has none; make one with: prefect-dstack token create --service %s",
            *(route.service, route.service),
        )


def _plan(desired: DesiredReplicas, kept: Revision | None, service: str) -> str:
    if kept is not None:
        return f"keeps the replicas of {service}@{kept.number}"
    if desired.groups:
        return f"deploying replicas in groups: {desired.summary}"
    return f"deploying {desired.replicas} {'replica' if desired.replicas == 1 else 'replicas'}"


def _explain_port(
    configuration: ServiceConfiguration, route: Route, gateway: ManagedGateway, run: ServiceRun
) -> None:
    state = gateway.state()
    if state is None or configuration.port.gateway_port is not None or route.port == state.base_port:
        return
    others = {other.port for name, other in state.routes.items() if name != route.service}
    if state.base_port in others or not gateway.port_is_free(state.base_port):
        run.log.info(
            "%s: published on port %d, because port %d of gateway '%s' is taken",
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
    return replace(goal, templates=tuple(replace(template, route=route) for template in goal.templates))


def _is_routed(record: ServiceRecord, prepared: PreparedService, run: ServiceRun) -> bool:
    """Return whether the route is what its gateway's own settings make of it today."""
    gateway = run.infrastructure.find_gateway(record.gateway)
    state = None if gateway is None else gateway.state()
    known = None if state is None else state.routes.get(record.name)
    if gateway is None or state is None or known is None or not gateway.running():
        return False
    wanted = _router(prepared.routed, gateway)(state)
    return wanted == known.model_copy(update={"tokens": {}, "replicas": {}, "preview": None})


def _undone(
    record: ServiceRecord,
    revision: Revision,
    error: Exception,
    run: ServiceRun,
    prepared: PreparedService,
    gateway: ManagedGateway | None = None,
) -> Exception:
    """Bring back what served before, and find the words for what happened."""
    name = f"{record.name}@{revision.number}"
    reason = _reason(error).removeprefix(f"{name}: ")
    with contextlib.suppress(Exception):  # what was found since is kept, if it can be had
        record = find_record(record.name) or record
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
