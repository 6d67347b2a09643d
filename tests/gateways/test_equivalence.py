"""What runs is what is on disk, whichever way it came there."""

from __future__ import annotations

import random
from collections.abc import Callable

from prefect_dstack.errors import NotFoundError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route, RouteModel, RouteReplica
from prefect_dstack.gateways.template import loaded_maps, maps
from prefect_dstack.hosts.ports import free_port
from tests.gateways.world import with_token

SERVICES = ("a", "b", "c")
Transition = Callable[[GatewayState], GatewayState]


def running_servers(gateway: Gateway) -> set[tuple[str, str, str, str]]:
    worker = gateway._workers().current[0]
    lines = gateway._master(f"@!{worker} show servers state").splitlines()
    header = next(line for line in lines if line.startswith("# be_id")).removeprefix("# ").split()
    rows = [
        dict(zip(header, line.split(), strict=True)) for line in lines if line[:1].isdigit() and " " in line
    ]
    return {
        (row["be_name"], row["srv_name"], f"{row['srv_addr']}:{row['srv_port']}", row["srv_uweight"])
        for row in rows
        if row["be_name"].startswith("service:")
    }


def wanted_servers(state: GatewayState) -> set[tuple[str, str, str, str]]:
    return {
        (f"service:{name}", it.name, f"{it.address}:{it.port}", str(it.effective_weight))
        for name, route in state.routes.items()
        for it in route.replicas.values()
    }


def running_map(gateway: Gateway, name: str) -> dict[str, str]:
    worker = gateway._workers().current[0]
    entries = gateway._master(f"@!{worker} show map {name}").splitlines()
    assert all(len(line.split()) == 3 for line in entries if line), entries
    return {key: value for _, key, value in (line.split() for line in entries if line)}


def route(service: str, port: int, queue_timeout: int = 60) -> Route:
    return Route(
        service=service, port=port, hosts=(f"{service}.test",), auth=True, queue_timeout=queue_timeout
    )


def transition(chance: random.Random, port: int) -> Transition:
    service, replica, token = chance.choice(SERVICES), f"r{chance.randrange(4)}", f"t{chance.randrange(3)}"
    weight, number = chance.choice([0, 100, 100, 200]), chance.randrange(20000, 20004)
    candidates: list[Transition] = [
        lambda state: state.with_replica(
            service, RouteReplica(name=replica, address="127.0.0.1", port=number)
        ),
        lambda state: state.without_replica(service, replica),
        lambda state: state.draining(service, replica),
        lambda state: state.with_weight(service, replica, weight),
        lambda state: with_token(state, service, token, AcceptedToken(sha256=f"{number:064x}")),
        lambda state: state.without_token(service, token),
        lambda state: with_token(state, None, token, AcceptedToken(sha256=f"{number:064x}")),
        lambda state: state.without_token(None, token),
        lambda state: state.with_challenge(token, f"{token}.x{number}"),
        lambda state: state.without_challenge(token),
        lambda state: state.without_replica(service, "r0").without_replica(service, "r1"),
        lambda state: state.with_route(route(service, port, queue_timeout=number % 10 + 1)),
        lambda state: state.with_route(
            route(service, port).model_copy(update={"model": RouteModel(name=service, created=number)})
        ),
    ]
    return chance.choice(candidates)


def test_random_changes_leave_running_what_is_written(gateway: Gateway, port: int) -> None:
    chance = random.Random(20251122)
    https_port = free_port()
    gateway.change(lambda state: state.model_copy(update={"https_port": https_port}))
    for service in SERVICES:
        gateway.change(lambda state, it=service: state.with_route(route(it, port)))  # type: ignore[misc]
    reloads, before = 0, gateway._workers().current
    for _ in range(120):
        try:
            state = gateway.change(transition(chance, port))
        except NotFoundError:
            continue
        assert running_servers(gateway) == wanted_servers(state)
        for name in loaded_maps(state):
            assert running_map(gateway, name) == maps(state)[name], name
        assert gateway.state() == state
        reloads += gateway._workers().current != before
        before = gateway._workers().current
    assert 0 < reloads < 60
    gateway.place.stop()
    gateway.ensure_running(state)
    assert running_servers(gateway) == wanted_servers(state)
