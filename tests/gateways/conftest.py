from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace, haproxy_binary
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application
from tests.gateways.world import World, replica


@pytest.fixture(scope="session")
def haproxy() -> str:
    try:
        return haproxy_binary()
    except GatewayError as error:
        pytest.skip(str(error))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def gateway(haproxy: str, tmp_path: Path, port: int) -> Iterator[Gateway]:
    """A running gateway without services."""
    gateway = Gateway(LocalPlace("local", tmp_path / "gateway"))
    gateway.ensure_running(GatewayState(name="local", base_port=port))
    yield gateway
    gateway.destroy()


@pytest.fixture
def application() -> Iterator[Callable[[str], Application]]:
    """Starts applications, and stops them in the end."""
    started: list[Application] = []

    def start(name: str = "replica", port: int = 0) -> Application:
        started.append(Application(name, port))
        return started[-1]

    yield start
    for it in started:
        it.stop()


@pytest.fixture(scope="module")
def world(haproxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    gateway = Gateway(LocalPlace("local", tmp_path_factory.mktemp("gateway") / "gateway"))
    gateway.ensure_running(GatewayState(name="local", base_port=free_port()))
    world = World(gateway)
    yield world
    gateway.destroy()
    for application in world.applications:
        application.stop()


def serve(gateway: Gateway, *applications: Application, service: str = "hello", **fields: object) -> Route:
    """Publish applications as replicas of one service."""
    replicas = {it.name: replica(it) for it in applications}
    route = Route.model_validate(
        {"service": service, "port": gateway.state().base_port, "replicas": replicas, **fields}
    )
    gateway.change(lambda state: state.with_route(route))
    return route
