"""Tasks on gateways: create, register, verify, drain, delete."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.state import GatewayState, Route, RouteReplica
from prefect_dstack.gateways.template import NO_SERVICE
from prefect_dstack.runtimes.base import Replica
from prefect_dstack.tasks import gateway_places
from prefect_dstack.tasks.inventory import inventory
from prefect_dstack.tasks.reaching import reach, unreach
from prefect_dstack.tasks.retrying import may_help, may_help_to_provision
from prefect_dstack.tasks.tokens import with_tokens

if TYPE_CHECKING:
    from prefect_dstack.backends.aws import CreatedGateway

__all__ = [
    "EVEN_WEIGHT",
    "create_gateway",
    "delete_gateway",
    "drain_replica",
    "register_route",
    "remove_route",
    "verify_endpoint",
]

POLL = 0.1
# The weight of every replica, but for those of a canary and beside it.
EVEN_WEIGHT = 100
REPORT_INTERVAL = 10.0
# An answer of the gateway itself is shorter.
BODY_READ = 1000
VERIFY_TIMEOUT = 30.0


@task(
    name="create-gateway",
    task_run_name="create-gateway {name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=may_help,
)
def create_gateway(name: str) -> GatewayState:
    """See that a gateway runs.

    Args:
        name: Its name; `local` needs no configuration.

    Returns:
        What it routes at the moment.
    """
    gateway = gateway_places.gateway(name)
    initial = gateway_places.initial_state(name)
    gateway.ensure_running(initial)
    state = gateway.change(lambda state: with_tokens(_configured(state, initial)))
    count = len(state.routes)
    get_run_logger().info("gateway %s: running, %d %s", *(name, count, "route" if count == 1 else "routes"))
    return state


@task(
    name="register-route",
    task_run_name="register-route {route.service}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[0.5, 2, 5],
    retry_condition_fn=may_help,
)
def register_route(
    gateway_name: str,
    route: Route,
    instance: Instance | None = None,
    replica: Replica | None = None,
    weight: int = EVEN_WEIGHT,
) -> None:
    """Give a replica requests, or bring a route's settings up to date.

    Args:
        gateway_name: The gateway.
        route: The route as it shall be; its replicas are those that the gateway has.
        instance: Where the replica runs; None: only the settings.
        replica: The replica that gets requests from now.
        weight: Its share of them, relative to the weights of the others.
    """
    gateway = gateway_places.gateway(gateway_name)
    if instance is None or replica is None:
        state = gateway.change(lambda state: with_tokens(state.with_route(_keeping_replicas(state, route))))
        gateway_places.open_ports(gateway_name, state)
        return
    address, port = reach(gateway_name, instance, replica)
    member = RouteReplica(name=replica.name, address=address, port=port, weight=weight)

    def registered(state: GatewayState) -> GatewayState:
        known = state.routes.get(route.service)
        if known is None:
            state = with_tokens(state.with_route(route))
        elif known.health_check != route.health_check:
            nonlocal member
            member = member.model_copy(update={"checked": False})
        return state.with_replica(route.service, member)

    gateway_places.open_ports(gateway_name, gateway.change(registered))
    get_run_logger().info(
        "%s: gets requests from gateway %s at %s:%d", replica.name, gateway_name, address, port
    )


@task(
    name="drain-replica",
    task_run_name="drain-replica {replica_name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=may_help,
)
def drain_replica(gateway_name: str, service: str, replica_name: str, timeout: float | None) -> None:
    """Give a replica no new requests, and wait for those that are open.

    Args:
        gateway_name: The gateway.
        service: The service.
        replica_name: The replica.
        timeout: Seconds to wait at most; what is still open then is cut when the replica is removed. None: no
            limit.
    """
    logger = get_run_logger()
    gateway = gateway_places.gateway(gateway_name)
    gateway.change(lambda state: state.draining(service, replica_name))
    start = told = time.monotonic()
    while (still_open := gateway.open_requests(service, replica_name)) > 0:
        now = time.monotonic()
        if timeout is not None and now - start >= timeout:
            logger.warning("%s: %d requests are still open after %.0f s", replica_name, still_open, timeout)
            return
        if now - told >= REPORT_INTERVAL:
            told = now
            logger.info("%s: draining, %d requests are still open", replica_name, still_open)
        time.sleep(POLL)
    logger.info("%s: drained in %.1f s", replica_name, time.monotonic() - start)


@task(
    name="unregister-replica",
    task_run_name="unregister-replica {stamp.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=may_help,
)
def unregister_replica(gateway_name: str, stamp: Stamp, instance: Instance | None) -> None:
    """Take a replica out of a route, and end the tunnel to it.

    Args:
        gateway_name: The gateway.
        stamp: The replica; no error if it is not there.
        instance: Where it runs; None: its machine is gone.
    """
    state = gateway_places.state(gateway_name)
    if state is None:
        return
    if stamp.service in state.routes:
        gateway_places.gateway(gateway_name).change(
            lambda state: state.without_replica(stamp.service, stamp.name)
        )
    unreach(gateway_name, stamp, instance)


@task(
    name="remove-route",
    task_run_name="remove-route {service}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=may_help,
)
def remove_route(gateway_name: str, service: str) -> None:
    """Take a service off a gateway. The gateway of this machine goes with its last route.

    Args:
        gateway_name: The gateway.
        service: The service; no error if it is not there.
    """
    gateway = gateway_places.gateway(gateway_name)
    state = gateway.change(lambda state: state.without_route(service))
    if gateway_places.is_implicit(gateway_name) and not state.routes:
        gateway.destroy()
        get_run_logger().info("gateway %s: no route is left, stopped", gateway_name)


@task(
    name="provision-gateway",
    task_run_name="provision-gateway {name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=may_help_to_provision,
)
def provision_gateway(name: str) -> CreatedGateway:
    """Create the machine of a gateway in a cloud, with its address and its DNS records.

    Args:
        name: The gateway.

    Returns:
        The machine, and the DNS records that lead to it; run twice, the first one.
    """
    return gateway_places.cloud(name).create(
        name, gateway_places.configuration_of(name), get_run_logger().info
    )


@task(
    name="delete-gateway",
    task_run_name="delete-gateway {name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=may_help,
)
def delete_gateway(name: str) -> None:
    """Remove a gateway with all that was made for it.

    Args:
        name: Its name; in a cloud, it need not be known here any more.
    """
    known = inventory().gateways.get(name)
    if known is None and name != gateway_places.LOCAL:
        gateway_places.cloud(name).delete(name)
    elif known is not None and known.backend == "aws":
        gateway_places.cloud(name).delete(name, known.domain)
    else:
        gateway_places.gateway(name).destroy()


@task(
    name="verify-endpoint",
    task_run_name="verify-endpoint {url}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=1,
    retry_condition_fn=may_help,
)
def verify_endpoint(url: str, address: str, path: str = "/") -> int:
    """Ask the endpoint for an answer, the way a client does.

    Args:
        url: The endpoint.
        address: The address of the gateway, in case the host name of the URL is not known here.
        path: What to ask for.

    Returns:
        The status that the application answered with; 401 where a token is needed; 0 if it was too slow.

    Raises:
        GatewayError: If the gateway cannot be reached, or it reaches no replica.
    """
    deadline = time.monotonic() + VERIFY_TIMEOUT
    detail = ""
    while time.monotonic() < deadline:
        try:
            status, body = _ask(url, address, path)
        except TimeoutError:
            get_run_logger().warning("%s: took the request, but has not answered it within 10 s", url)
            return 0
        except (OSError, http.client.HTTPException) as error:
            detail = str(error) or type(error).__name__
        else:
            if status not in (502, 503, 504) and (status, body) != (NO_SERVICE.status, NO_SERVICE.body):
                get_run_logger().info("%s answers: %d", url, status)
                return status
            detail = f"the gateway answers {status}"
        time.sleep(POLL)
    raise GatewayError(f"{url}: does not answer: {detail}")


def _ask(url: str, address: str, path: str) -> tuple[int, str]:
    parts = urlsplit(url)
    host = parts.hostname or address
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        try:
            stream: socket.socket = socket.create_connection((address, port), timeout=10)
        except TimeoutError as error:
            raise OSError(f"no connection to {address}:{port} within 10 s") from error
        if parts.scheme == "https":
            # Whether the chain is one that clients trust is another question than whether a replica answers.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = context.wrap_socket(stream, server_hostname=host)
        connection.sock = stream
        connection.request("GET", parts.path.rstrip("/") + path, headers={"User-Agent": "prefect-dstack"})
        answer = connection.getresponse()
        told = answer.read(BODY_READ) if answer.status == NO_SERVICE.status else b""
        return answer.status, told.decode(errors="replace")
    finally:
        connection.close()


def _configured(state: GatewayState, wanted: GatewayState) -> GatewayState:
    """Follow a gateway's file in what can change while it serves; routes move with their next deployment."""
    kept = {name: getattr(wanted, name) for name in ("domain", "https_port", "base_port")}
    if all(getattr(state, name) == value for name, value in kept.items()):
        return state
    routes = {
        name: {
            **dict(route),
            "https_redirect": route.https_redirect
            and wanted.https_port is not None
            and route.port == wanted.base_port,
        }
        for name, route in state.routes.items()
    }
    return GatewayState.model_validate({**dict(state), **kept, "routes": routes})


def _keeping_replicas(state: GatewayState, route: Route) -> Route:
    known = state.route(route.service)
    replicas = {
        name: replica.model_copy(update={"checked": True, "weight": EVEN_WEIGHT})
        for name, replica in known.replicas.items()
    }
    return route.model_copy(update={"replicas": replicas})
