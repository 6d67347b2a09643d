"""No request is lost while a gateway changes, and nothing but a request is."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, Load
from tests.gateways.conftest import replica, serve
from tests.polling import wait_until

pytestmark = pytest.mark.integration

Start = Callable[[str], Application]


def open_stream(port: int, target: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def open_websocket(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.sendall(
        b"GET /websocket HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    assert b" 101 " in head.split(b"\r\n")[0]
    return connection


def echoes(websocket: socket.socket, data: bytes) -> bool:
    websocket.sendall(data)
    received = b""
    while len(received) < len(data):
        if not (part := websocket.recv(4096)):
            return False
        received += part
    return received == data


def swap(gateway: Gateway, old: Application, new: Application) -> None:
    """Replace a replica as a deployment does."""
    gateway.change(lambda state: state.with_replica("hello", replica(new)))
    gateway.change(lambda state: state.draining("hello", old.name))
    wait_until(lambda: gateway.open_requests("hello")[old.name] == 0)
    gateway.change(lambda state: state.without_replica("hello", old.name))
    old.stop()


def workers(gateway: Gateway) -> tuple[int, ...]:
    return gateway._workers().current


def test_fifty_replicas_are_swapped_without_losing_a_request(
    gateway: Gateway, port: int, application: Start
) -> None:
    present = application("r0")
    serve(gateway, present)
    before = workers(gateway)
    with Load(port) as load:
        for number in range(1, 51):
            successor = application(f"r{number}")
            swap(gateway, present, successor)
            present = successor
            wait_until(lambda name=present.name: load.replicas[name] > 0)  # type: ignore[misc]
    assert load.failures == []
    assert len(load.replicas) == 51
    assert workers(gateway) == before, "a swap must not reload"


def test_fifty_reloads_lose_no_request(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"), application("r1"))
    with Load(port) as load:
        for number in range(50):
            done = load.done
            route = gateway.state().routes["hello"].model_copy(update={"queue_timeout": 10 + number})
            gateway.change(lambda state, route=route: state.with_route(route))  # type: ignore[misc]
            wait_until(lambda done=done: load.done >= done + 5)  # type: ignore[misc]
    assert load.failures == []
    assert load.done > 500


def test_streams_and_websockets_survive_a_swap_and_a_reload(
    gateway: Gateway, port: int, application: Start
) -> None:
    old, new = application("old"), application("new")
    serve(gateway, old)
    events = open_stream(port, "/events?count=40&seconds=0.05")
    websocket = open_websocket(port)
    assert echoes(websocket, b"before")

    gateway.change(lambda state: state.with_replica("hello", replica(new)).draining("hello", "old"))
    assert gateway.open_requests("hello")["old"] == 2
    gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
    assert gateway.open_requests("hello")["old"] == 2, "those of the earlier configuration count too"

    assert echoes(websocket, b"after")
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        part = events.recv(65536)
        assert part, received
        received += part
    assert received.count(b"data: ") == 40
    wait_until(lambda: gateway.open_requests("hello")["old"] == 1)
    websocket.close()
    events.close()
    wait_until(lambda: gateway.open_requests("hello")["old"] == 0)


def test_events_arrive_as_soon_as_they_are_sent(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"))
    events = open_stream(port, "/events?count=2&seconds=0.5")
    received = b""
    while b"data: 0" not in received:
        received += events.recv(65536)
    assert b"data: 1" not in received
    while b"data: 1" not in received:
        received += events.recv(65536)
    events.close()


def test_a_connection_of_an_earlier_configuration_follows_later_changes(
    gateway: Gateway, port: int, application: Start
) -> None:
    old, new = application("old"), application("new")
    serve(gateway, old)
    connection = socket.create_connection(("127.0.0.1", port), 5)
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    connection.sendall(ask)
    assert connection.recv(4096).endswith(b"old")
    gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
    swap(gateway, old, new)
    connection.sendall(ask)
    answer = connection.recv(4096)
    assert answer.endswith(b"new"), answer
    assert b"connection: close" in answer.lower()
    connection.close()


def test_draining_leaves_requests_under_way_running(gateway: Gateway, port: int, application: Start) -> None:
    old, new = application("old"), application("new")
    serve(gateway, old)
    slow = open_stream(port, "/slow?seconds=1")
    wait_until(lambda: old.counts["slow"] == 1)
    gateway.change(lambda state: state.with_replica("hello", replica(new)).draining("hello", "old"))
    assert gateway.open_requests("hello")["old"] == 1
    assert gateway.replica_health("hello")["old"].status == "DRAIN"
    assert slow.recv(4096).endswith(b"old")
    slow.close()


def test_removing_a_replica_ends_what_it_still_does(gateway: Gateway, port: int, application: Start) -> None:
    """GET is asked of another replica instead; POST is not, as nobody knows what came of it."""
    old, new = application("old"), application("new")
    serve(gateway, old)
    get = open_stream(port, "/slow?seconds=1")
    post = socket.create_connection(("127.0.0.1", port), 10)
    post.sendall(b"POST /slow?seconds=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    wait_until(lambda: old.counts["slow"] == 2)
    before = workers(gateway)
    gateway.change(lambda state: state.with_replica("hello", replica(new)).without_replica("hello", "old"))
    assert b" 502 " in post.recv(4096).split(b"\r\n")[0]
    assert get.recv(4096).endswith(b"new")
    get.close()
    post.close()
    assert set(gateway.replica_health("hello")) == {"new"}
    assert workers(gateway) == before


def test_a_replica_leaves_though_idle_connections_to_it_are_open(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, application("r0"), application("r1"))
    with Load(port, clients=8) as load:
        wait_until(lambda: len(load.replicas) == 2)
    before = workers(gateway)
    gateway.change(lambda state: state.without_replica("hello", "r1"))
    assert set(gateway.replica_health("hello")) == {"r0"}
    assert workers(gateway) == before
