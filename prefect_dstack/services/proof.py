"""Whether new settings keep within reach what serves: asked of its replicas before, of its endpoint after."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect_dstack.configurations import Probe, ServiceConfiguration
from prefect_dstack.controller.goal import Goal
from prefect_dstack.controller.operations import ask_endpoint
from prefect_dstack.domain.record import Endpoint, ServiceRecord
from prefect_dstack.errors import GatewayError, ReplicaNotReadyError
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.observation import FoundReplica, Observation
from prefect_dstack.runtimes.probes import Answer, ask
from prefect_dstack.services.preparation import PreparedService
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.tasks.gateways import verify_endpoint
from prefect_dstack.tasks.replicas import wait_until_ready

__all__ = ["Proof", "begin_proof"]

# Seconds within which running replicas must pass new probes, and an endpoint answer with new settings: what
# serves meanwhile has shown that it can.
TIMEOUT = 10.0
POLL = 0.1
UNAUTHORIZED, TOO_MANY = 401, 429


@dataclass(frozen=True)
class Proof:
    """What was found with the settings that served so far.

    Attributes:
        gateway: The gateway.
        before: The route as it was; None: nothing of it is kept.
        status: What the endpoint answered with; None: nothing in time.
        path: What is asked of the application.
    """

    gateway: ManagedGateway
    before: Route | None
    status: int | None
    path: str

    def end(self, endpoint: Endpoint, route: Route) -> None:
        """Request the endpoint again, now that the new settings are in force.

        Args:
            endpoint: Where the service answers now.
            route: Its route now.

        Raises:
            GatewayError: If it cannot be reached.
            ReplicaNotReadyError: If it answers worse than before, or the gateway's own checks fail.
        """
        path = _path_at(route, self.path)
        if not endpoint.replicas:
            return  # a request would wait at the gateway, and wake what nobody has asked for
        if self.before is None:
            verify_endpoint(endpoint.url, self.gateway.address, path)
            return
        if self.before.health_check != route.health_check:
            self._wait_for_checks(route)
        once = verify_endpoint.with_options(retries=0)
        status = once(endpoint.url, self.gateway.address, path, TIMEOUT)
        asked_for = {UNAUTHORIZED} if route.auth else set()
        asked_for |= {TOO_MANY} if route.rate_limits else set()
        if _is_well(self.status) and not _is_well(status) and status not in asked_for:
            answer = f"answers {status}" if status else "does not answer"
            raise ReplicaNotReadyError(
                f"{endpoint.url}{path} {answer} with the new settings, and {self.status} with those before"
            )

    def _wait_for_checks(self, route: Route) -> None:
        """Wait until the gateway has checked each replica in the new way: its way there may be another."""
        ready = {name for name, member in route.replicas.items() if member.state == "ready"}
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            health = self.gateway.control.replica_health(route.service)
            for name in sorted(ready & health.keys()):
                if " passed" in health[name].check:
                    ready.discard(name)
                elif health[name].check not in ("", "Initializing"):
                    raise ReplicaNotReadyError(
                        f"{name}: does not pass the checks of gateway '{self.gateway.name}': "
                        f"{health[name].check}"
                    )
            if not ready & health.keys():
                return
            time.sleep(POLL)


def begin_proof(
    goal: Goal,
    prepared: PreparedService,
    gateway: ManagedGateway,
    record: ServiceRecord,
    run: ServiceRun,
    *,
    keeps: bool,
) -> Proof:
    """Run the probes of new settings on the replicas that serve, before these settings are in force.

    Args:
        goal: The new settings are in its template.
        prepared: The service with the new settings.
        gateway: The gateway in front of it.
        record: The record of the service.
        run: The flow run.
        keeps: Whether the replicas that serve are kept; new ones are proven as they come.

    Returns:
        What is to be compared once they are in force.

    Raises:
        ReplicaNotReadyError: If a replica does not pass the new probes, or would be asked for what it does
            not answer well.
    """
    path = _probed_path(prepared.routed)
    if not keeps:
        return Proof(gateway, None, None, path)
    observation, state = run.world(goal, gateway, record).observe()
    before = None if state is None else state.routes.get(record.name)
    found = _serving(observation, state, goal)
    if goal.templates:
        # Probes and the route are those of the service, whatever the groups of its replicas.
        template = goal.templates[0]
        if prepared.probes:
            patient = replace(template, ready_timeout=min(TIMEOUT, template.ready_timeout))
            for item in found:
                wait_until_ready(run.infrastructure, item, patient, threading.Event())
        if before is not None:
            if before.health_check != template.route.health_check:
                _check(found, template.route, run)
            _compare(found, before, template.route, path, run)
    status = None
    if before is not None and record.endpoint is not None:
        status = _status(record.endpoint.url, gateway.address, _path_at(before, path))
    return Proof(gateway, before, status, path)


def _probed_path(configuration: ServiceConfiguration) -> str:
    """Return what tells whether an application is well.

    Args:
        configuration: The service.

    Returns:
        The path of its first probe that asks for one; without any, `/`.
    """
    for probe in configuration.probes or ():
        if probe.type == "http" and probe.method.upper() == "GET":
            return probe.url
    return "/"


def _path_at(route: Route, path: str) -> str:
    """Return what a client asks for to get a path of the application.

    Args:
        route: The route.
        path: The path, as the application knows it.

    Returns:
        The path below the service's URL. That of an application which sees the route's prefix, and has the
        path outside of it, is looked for below the prefix.
    """
    prefix = route.path_prefix.rstrip("/")
    if prefix and not route.strip_prefix and f"{path}/".startswith(f"{prefix}/"):
        return path[len(prefix) :] or "/"
    return path


def _path_seen(route: Route, path: str) -> str:
    """Return what an application sees of what a client asks for to get a path of it."""
    return path if route.strip_prefix else route.path_prefix.rstrip("/") + _path_at(route, path)


def _check(found: Sequence[FoundReplica], route: Route, run: ServiceRun) -> None:
    """Run the gateway's checks on replicas: a first check that fails takes a replica out at once."""
    check = route.health_check
    if check is None:
        return
    host = next((value for name, value in check.headers if name.lower() == "host"), None)
    host = host or (route.hosts[0] if route.hosts else "localhost")
    headers = [("Host", host), *((name, value) for name, value in check.headers if name.lower() != "host")]
    probe = Probe.model_validate(
        {
            "type": "http",
            "method": check.method,
            "url": check.path,
            "headers": [{"name": name, "value": value} for name, value in headers],
            "body": check.body,
            "timeout": check.timeout,
        }
    )
    for item in found:
        answer = ask(run.infrastructure.machine(item.instance), item.replica, probe)
        if not answer.passed:
            raise ReplicaNotReadyError(
                f"{item.replica.name}: {answer.detail}, asked as the gateway does, for host {host}"
            )


def _compare(found: Sequence[FoundReplica], before: Route, after: Route, path: str, run: ServiceRun) -> None:
    """Refuse settings with which a replica is asked for what it does not answer as well as before."""
    asked = [(_path_seen(route, path), _patience(route)) for route in (before, after)]
    if asked[0] == asked[1]:
        return
    for item in found:
        earlier, later = (_ask(item, path, patience, run) for path, patience in asked)
        if _is_well(earlier.status) and not _is_well(later.status):
            raise ReplicaNotReadyError(
                f"{item.replica.name}: {later.detail}; that is what it is asked with the new settings, and "
                f"it answers {earlier.status} to what it is asked so far"
            )


def _ask(found: FoundReplica, path: str, patience: float, run: ServiceRun) -> Answer:
    probe = Probe(type="http", url=path, timeout=patience)
    return ask(run.infrastructure.machine(found.instance), found.replica, probe)


def _patience(route: Route) -> float:
    """Return the seconds that the gateway waits for an answer, and we at most."""
    limits = [limit for limit in (route.timeouts.request, route.timeouts.idle) if limit]
    return min(float(max(limits, default=TIMEOUT)), TIMEOUT)


def _serving(observation: Observation, state: GatewayState | None, goal: Goal) -> list[FoundReplica]:
    """Return the replicas that the settings are proven on; one that has ended is replaced after that."""
    route = None if state is None else state.routes.get(goal.service)
    members = {} if route is None else route.replicas
    return [
        found
        for found in observation.found
        if found.replica.stamp.revision == goal.revision
        and found.replica.name in members
        and members[found.replica.name].state == "ready"
        and found.status.state not in ("exited", "gone")
    ]


def _status(url: str, address: str, path: str) -> int | None:
    try:
        return ask_endpoint(url, address, path, TIMEOUT)[0]
    except (OSError, http.client.HTTPException, GatewayError):
        return None


def _is_well(status: int | None) -> bool:
    return status is not None and 0 < status < 400
