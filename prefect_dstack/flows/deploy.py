"""The main job: from a configuration to a live endpoint."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run as current_run

from prefect_dstack.configurations import Canary, ServiceConfiguration, load_configuration
from prefect_dstack.domain.record import Endpoint, Revision, ServiceRecord
from prefect_dstack.domain.rollout import Wanted, next_steps
from prefect_dstack.errors import DeploymentError, HostUnreachableError, PrefectDstackError
from prefect_dstack.flows.canary import try_canary
from prefect_dstack.flows.convergence import Goal, converge
from prefect_dstack.flows.goals import Turn, asked_at, goal_for, held
from prefect_dstack.flows.preparation import (
    Workload,
    find_offers,
    load_service,
    next_revision,
    workload,
)
from prefect_dstack.flows.renew_certificates import ensure_certificates
from prefect_dstack.flows.restoring import bring_back, restore, restore_hook
from prefect_dstack.flows.routing import endpoint_of, route_of
from prefect_dstack.flows.served import served_flow
from prefect_dstack.tasks import gateway_places, observation
from prefect_dstack.tasks.certificates import check_files
from prefect_dstack.tasks.gateways import create_gateway, register_route, remove_route, verify_endpoint
from prefect_dstack.tasks.publication import publish_deployed
from prefect_dstack.tasks.records import find_record, new_record, save_record
from prefect_dstack.tasks.runs import deploying
from prefect_dstack.tasks.tokens import has_token

__all__ = ["adeploy_service", "deploy_service", "put_on_air", "superseded"]


def _run_name() -> str:
    parameters = current_run.get_parameters()
    name = parameters.get("name")
    if name is None:
        with contextlib.suppress(PrefectDstackError):
            name = load_configuration(parameters["configuration"]).name
    return f"deploy {name or 'service'}"


@served_flow(
    name="deploy-service",
    flow_run_name=_run_name,
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def deploy_service(
    configuration: str | Path | dict[str, Any] | ServiceConfiguration,
    name: str | None = None,
    force: bool = False,
    profile: str | None = None,
    args: list[str] | None = None,
) -> Endpoint:
    """Put a service on the air, or a new revision of it in the place of the old one.

    The old revision serves until the new one has passed its probes, and gets no more requests then. If the
    new one does not make it, all that it created is removed and the old one serves on.

    Args:
        configuration: The path of a `*.dstack.yml`, YAML text, a mapping or a model.
        name: The name of the service; default: the configuration's.
        force: Replace the replicas even if nothing has changed.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.

    Returns:
        Where the service answers.

    Raises:
        UserError: If the configuration, or what it runs, cannot work as it is.
        PrefectDstackError: If anything else fails.

    Example:
        ```python
        from prefect import flow
        from prefect_dstack import deploy_service


        @flow
        def train_and_deploy() -> str:
            endpoint = deploy_service("serve.dstack.yml")
            return endpoint.url
        ```
    """
    service = load_service(configuration, name=name, args=args or (), profile=profile)
    with held(service.name or "") as turn:
        record = find_record(service.name or "") or new_record(service.name or "")
        if (newer := superseded(record)) is not None:
            return newer
        return _deploy(record, workload(service), turn, force=force)


async def adeploy_service(
    configuration: str | Path | dict[str, Any] | ServiceConfiguration,
    name: str | None = None,
    force: bool = False,
    profile: str | None = None,
    args: list[str] | None = None,
) -> Endpoint:
    """Do the same as `deploy_service` without blocking an event loop.

    Args:
        configuration: The path of a `*.dstack.yml`, YAML text, a mapping or a model.
        name: The name of the service; default: the configuration's.
        force: Replace the replicas even if nothing has changed.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.

    Returns:
        Where the service answers.

    Raises:
        UserError: If the configuration, or what it runs, cannot work as it is.
        PrefectDstackError: If anything else fails.
    """
    return await asyncio.to_thread(deploy_service, configuration, name, force, profile, args)


def superseded(record: ServiceRecord) -> Endpoint | None:
    """Tell whether what this flow run is to do has been overtaken while it waited for its turn.

    Args:
        record: Of the service; its limit is held.

    Returns:
        Where the service answers as it was asked for later than this flow run began; None if it was not.

    Raises:
        DeploymentError: If it was stopped since.
    """
    if record.asked_at is None or record.asked_at <= asked_at():
        return None
    if record.endpoint is None or record.active is None:
        raise DeploymentError(f"{record.name}: was stopped after this flow run began; nothing was done")
    get_run_logger().warning(
        "%s: superseded by %s@%d, which was asked for later; nothing was done",
        *(record.name, record.name, record.active),
    )
    return record.endpoint.model_copy(update={"changed": False, "superseded": True})


def _deploy(record: ServiceRecord, work: Workload, turn: Turn, *, force: bool) -> Endpoint:
    revision = next_revision(record, work, turn.flow_run)
    active = record.active_revision
    if active is not None and active.workload == revision.workload and not force:
        revision = revision.model_copy(update={"replicas_of": active.replicas_of})
        goal = goal_for(record, revision, work, record.gateway, turn.flow_run)
        if (
            active.settings == revision.settings
            and record.endpoint is not None
            and _is_reached(goal)
            and _is_routed(record, work)
        ):
            get_run_logger().info("%s@%d: unchanged, nothing to do", record.name, active.number)
            return record.endpoint.model_copy(update={"changed": False})
    return put_on_air(record, revision, work, turn)


def put_on_air(
    record: ServiceRecord, revision: Revision, work: Workload, turn: Turn, *, at_once: bool = False
) -> Endpoint:
    """Make a revision the one that serves; what served before serves on if it fails.

    Args:
        record: Of the service; its limit is held.
        revision: The revision, new or an earlier one.
        work: What it is made of.
        turn: What this flow run holds.
        at_once: Whether a canary is left out.

    Returns:
        Where the service answers.

    Raises:
        PrefectDstackError: If it does not make it; the message says why, and what serves now.
    """
    logger = get_run_logger()
    active = record.active_revision
    gateway = gateway_places.choose(work.configuration, record.gateway if active else None)
    goal = goal_for(record, revision, work, gateway, turn.flow_run)
    if active is None or (goal.limits.max_surge and active.replicas_of != revision.replicas_of):
        goal.offers = find_offers(work.configuration)

    state = gateway_places.state(gateway) or gateway_places.initial_state(gateway)
    goal.route = route_of(work.configuration, gateway_places.gateway(gateway), state)
    check_files(gateway_places.configuration_of(gateway), [goal.route])
    mine = deploying(revision.number, turn.flow_run, turn.lease)
    record = record.begun(revision, mine, work.configuration.retain)
    if active is None:
        record = record.model_copy(update={"gateway": gateway})
    save_record(record, work.deployer)
    if active is not None and active.replicas_of == revision.replicas_of:
        logger.info(
            "%s@%d: keeps the replicas of %s@%d", record.name, revision.number, record.name, active.number
        )
    else:
        noun = "replica" if goal.replicas == 1 else "replicas"
        logger.info("%s@%d: deploying %d %s", record.name, revision.number, goal.replicas, noun)
    if work.configuration.port.gateway_port is None and goal.route.port != state.base_port:
        logger.info(
            "%s: published on port %d, as port %d of gateway '%s' is taken",
            *(record.name, goal.route.port, state.base_port, gateway),
        )
    rollout = work.configuration.rollout
    try:
        create_gateway(gateway)
        if rollout.strategy == "canary" and not at_once and _replaces_beside(record, revision, gateway):
            try_canary(goal, bring_back(record, turn.flow_run), rollout.canary or Canary())
        sight = converge(goal)
        register_route(gateway, goal.route)
        ensure_certificates(gateway, [goal.route])
        endpoint = endpoint_of(
            work.configuration,
            goal.route,
            gateway_places.state(gateway) or state,
            gateway_places.address(gateway),
            revision.number,
            sorted(found.replica.name for found in sight.found),
        )
        verify_endpoint(endpoint.url, gateway_places.address(gateway), _probed_path(work.configuration))
    except Exception as error:
        raise _undone(record, revision, error, gateway) from error
    if active is not None and record.gateway != gateway:
        remove_route(record.gateway, record.name)
    record = record.model_copy(update={"gateway": gateway, "asked_at": asked_at()}).served(
        revision.number, endpoint
    )
    save_record(record)
    publish_deployed(endpoint, gateway, sight.found)
    logger.info("%s@%d: serves at %s", record.name, revision.number, endpoint.url)
    if goal.route.auth and not has_token(gateway, record.name):
        logger.warning(
            "%s: needs a token and has none; make one with: prefect-dstack token create --service %s",
            *(record.name, record.name),
        )
    return endpoint


def _replaces_beside(record: ServiceRecord, revision: Revision, gateway: str) -> bool:
    active = record.active_revision
    return active is not None and active.replicas_of != revision.replicas_of and record.gateway == gateway


def _is_reached(goal: Goal) -> bool:
    sight = observation.look(
        goal.service, observation.instances_of(goal.service, goal.runtimes), goal.runtimes
    )
    running = observation.running(sight, goal.service, gateway_places.state(goal.gateway))
    return not next_steps(running, Wanted(revision=goal.revision, replicas=goal.replicas), goal.limits)


def _is_routed(record: ServiceRecord, work: Workload) -> bool:
    """Tell whether the route is what its gateway's own settings make of it today."""
    state = gateway_places.state(record.gateway)
    known = None if state is None else state.routes.get(record.name)
    if state is None or known is None or not gateway_places.runs(record.gateway):
        return False
    wanted = route_of(work.configuration, gateway_places.gateway(record.gateway), state)
    return wanted == known.model_copy(update={"tokens": {}, "replicas": {}})


def _undone(record: ServiceRecord, revision: Revision, error: Exception, gateway: str) -> Exception:
    """Bring back what served before, and find the words for what happened."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    name = f"{record.name}@{revision.number}"
    try:
        restore(record.failed(revision.number, reason), revision.flow_run)
        if gateway != record.gateway:
            remove_route(gateway, record.name)
    except Exception as failure:  # noqa: BLE001 - the reason of the deployment's failure comes first
        get_run_logger().error("%s: cannot undo all of it, run prefect-dstack reconcile: %s", name, failure)
        after = f"and not all of it could be undone: {failure}"
    else:
        where = " where it can be reached" if isinstance(error, HostUnreachableError) else ""
        gone = f"nothing of it is left{where}"
        after = f"{record.name}@{record.active} serves on" if record.active else gone
    message = f"{name} failed: {reason}; {after}"
    if isinstance(error, PrefectDstackError):
        error.args = (message,)
        return error
    return DeploymentError(message)


def _probed_path(configuration: ServiceConfiguration) -> str:
    for probe in configuration.probes or ():
        if probe.type == "http" and probe.method.upper() == "GET":
            return probe.url
    return "/"
