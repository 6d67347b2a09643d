"""Tasks on gateways: create, register, verify, drain, delete."""

from __future__ import annotations

from collections.abc import Callable

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_dstack.backends.base import CreatedGateway, Instance
from prefect_dstack.controller import operations
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.tasks.retries import is_provisioning_retryable, is_retryable

__all__ = [
    "create_gateway",
    "delete_gateway",
    "drain_replica",
    "provision_gateway",
    "register_route",
    "remove_route",
    "unregister_replica",
    "update_route",
    "verify_endpoint",
]

VERIFY_TIMEOUT = 30.0


@task(
    name="create-gateway",
    task_run_name="create-gateway {gateway.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=is_retryable,
)
def create_gateway(
    gateway: ManagedGateway, route_of: Callable[[GatewayState], Route] | None = None
) -> GatewayState:
    """Start a gateway unless it runs, and take a route there.

    Args:
        gateway: The gateway; `local` needs no configuration.
        route_of: Returns the route that a new service gets, given the state of the gateway.

    Returns:
        What it routes then.
    """
    state = gateway.ensure(route_of)
    count = len(state.routes)
    noun = "route" if count == 1 else "routes"
    get_run_logger().info("gateway %s: running, %d %s", gateway.name, count, noun)
    return state


@task(
    name="register-route",
    task_run_name="register-route {route.service}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[0.5, 2, 5],
    retry_condition_fn=is_retryable,
)
def register_route(
    infrastructure: Infrastructure,
    gateway: ManagedGateway,
    route: Route,
    found: FoundReplica,
    weight: int,
    *,
    direct: bool = True,
) -> None:
    """Route requests to a replica."""
    operations.register_replica(
        infrastructure, gateway, route, found, weight, get_run_logger(), direct=direct
    )


@task(
    name="update-route",
    task_run_name="update-route {service}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[0.5, 2, 5],
    retry_condition_fn=is_retryable,
)
def update_route(gateway: ManagedGateway, service: str, route_of: Callable[[GatewayState], Route]) -> Route:
    """Bring the settings of a route up to date; its replicas stay.

    Args:
        gateway: The gateway.
        service: The service, for the name of the task run.
        route_of: Returns the route, given the state of the gateway.

    Returns:
        The route as it is then.
    """
    return gateway.update(route_of)


@task(
    name="drain-replica",
    task_run_name="drain-replica {replica}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=is_retryable,
)
def drain_replica(gateway: ManagedGateway, service: str, replica: str, timeout: float | None) -> None:
    """Drain a replica: send it no new requests, and wait for the open ones to end."""
    operations.drain_replica(gateway, service, replica, timeout, get_run_logger())


@task(
    name="unregister-replica",
    task_run_name="unregister-replica {stamp.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=is_retryable,
)
def unregister_replica(
    infrastructure: Infrastructure, gateway: ManagedGateway, stamp: Stamp, instance: Instance | None
) -> None:
    """Remove a replica from a route, and close the tunnel to it."""
    operations.unregister_replica(infrastructure, gateway, stamp, instance)


@task(
    name="remove-route",
    task_run_name="remove-route {service}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=is_retryable,
)
def remove_route(gateway: ManagedGateway, service: str) -> None:
    """Remove a service from a gateway. The gateway of this machine goes with its last route.

    Args:
        gateway: The gateway.
        service: The service; no error if it is not there.
    """
    if gateway.state() is not None and gateway.remove_route(service):
        get_run_logger().info("gateway %s: no route is left, stopped", gateway.name)


@task(
    name="provision-gateway",
    task_run_name="provision-gateway {gateway.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_provisioning_retryable,
)
def provision_gateway(gateway: ManagedGateway) -> CreatedGateway | None:
    """Create the machine of a gateway in a cloud, with its address and its DNS records.

    Args:
        gateway: The gateway.

    Returns:
        The machine, and the DNS records that somebody must create; run twice, the first one.
    """
    return gateway.provision(get_run_logger().info)


@task(
    name="delete-gateway",
    task_run_name="delete-gateway {gateway.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_retryable,
)
def delete_gateway(gateway: ManagedGateway) -> None:
    """Remove a gateway with all that was made for it.

    Args:
        gateway: The gateway.
    """
    gateway.destroy()


@task(
    name="verify-endpoint",
    task_run_name="verify-endpoint {url}",
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=1,
    retry_condition_fn=is_retryable,
)
def verify_endpoint(url: str, address: str, path: str = "/", timeout: float = VERIFY_TIMEOUT) -> int:
    """Request the endpoint until it answers, the way a client does."""
    return operations.verify_endpoint(url, address, path, timeout, get_run_logger())
