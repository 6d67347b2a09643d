"""Requests that wait at the gateway until their service has a replica."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.runtime import parse_held
from prefect_dstack.gateways.state import Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, request
from tests.gateways.conftest import replica, serve
from tests.gateways.test_continuity import echoes, open_websocket
from tests.gateways.waiting import ever_held, held, held_by_current
from tests.gateways.world import token
from tests.polling import wait_until

pytestmark = pytest.mark.integration

Start = Callable[[str], Application]
GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n"
)


async def ask(port: int, data: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer.decode()


def statuses(answers: list[str]) -> list[int]:
    return [int(answer.split(" ")[1]) for answer in answers]


def arrive(gateway: Gateway, application: Application) -> None:
    gateway.change(lambda state: state.with_replica("hello", replica(application)))


def test_a_thousand_requests_wait_for_the_first_replica(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, hold_limit=1000)

    async def go() -> list[str]:
        answers = [asyncio.create_task(ask(port, (GET, POST)[n % 2])) for n in range(1000)]
        await asyncio.to_thread(wait_until, lambda: held(gateway, "hello") == 1000, 30)
        await asyncio.to_thread(arrive, gateway, application("r0"))
        return await asyncio.gather(*answers)

    assert set(statuses(asyncio.run(go()))) == {200}
    wait_until(lambda: held(gateway, "hello") == 0)
    assert ever_held(gateway, "hello") == 1000
    assert request(port).status == 200
    assert ever_held(gateway, "hello") == 1000, "it found a replica"


def test_no_more_wait_than_may(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, hold_limit=3)
    assert held(gateway, "hello") == 0
    assert held(gateway, "nobody") == 0

    async def go() -> tuple[list[str], list[str]]:
        waiting = [asyncio.create_task(ask(port, GET)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: held(gateway, "hello") == 3)
        refused = await asyncio.gather(*(ask(port, GET) for _ in range(5)))
        assert held(gateway, "hello") == 3
        arrive(gateway, application("r0"))
        return await asyncio.gather(*waiting), refused

    before = ever_held(gateway, "hello")
    waiting, refused = asyncio.run(go())
    assert statuses(waiting) == [200] * 3
    assert statuses(refused) == [503] * 5
    assert all("retry-after: " in answer.lower() for answer in refused)
    assert ever_held(gateway, "hello") - before == 8, "whoever is refused wants a replica too"


def test_whoever_waited_too_long_is_told_when_to_come_back(gateway: Gateway, port: int) -> None:
    serve(gateway, hold_limit=3, hold_timeout=1)
    start = time.monotonic()
    answer = request(port)
    assert time.monotonic() - start >= 1
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["type"] == "unavailable"
    assert held(gateway, "hello") == 0


def test_nobody_waits_unless_the_route_says_so(gateway: Gateway, port: int) -> None:
    serve(gateway)
    assert request(port).status == 503
    assert held(gateway, "hello") == 0


def test_requests_wait_while_the_only_replica_drains_or_is_down(
    gateway: Gateway, port: int, application: Start
) -> None:
    old = application("old")
    serve(gateway, old, hold_limit=3)
    gateway.change(lambda state: state.draining("hello", "old"))
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(request, port)
        wait_until(lambda: held(gateway, "hello") == 1)
        arrive(gateway, application("new"))
        assert answer.result(10).body == b"new"


def test_websockets_and_streams_wait_too(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, hold_limit=3)
    with ThreadPoolExecutor(2) as threads:
        websocket = threads.submit(open_websocket, port)
        events = threads.submit(request, port, "/events?count=3&seconds=0.01")
        wait_until(lambda: held(gateway, "hello") == 2)
        arrive(gateway, application("r0"))
        with websocket.result(10) as connection:
            assert echoes(connection, b"hello")
        assert events.result(10).body.count(b"data: ") == 3


def test_only_whoever_may_ask_is_waited_for(gateway: Gateway, port: int, application: Start) -> None:
    serve(
        gateway,
        hold_limit=3,
        auth=True,
        tokens={"t": token("right")},
        rate_limits=[{"rps": 1 / 60}],
        client_max_body_size=10,
    )
    right = {"Authorization": "Bearer right"}
    assert request(port).status == 401
    assert request(port, method="POST", body=b"x" * 11, headers=right).status == 413
    assert ever_held(gateway, "hello") == 0
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(request, port, "/echo", headers=right)
        wait_until(lambda: held(gateway, "hello") == 1)
        assert request(port, headers=right).status == 429
        arrive(gateway, application("r0"))
        headers = dict(answer.result(10).json()["headers"])
    assert "authorization" not in headers
    assert headers["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize("data", [GET, POST, CHUNKED], ids=["get", "post", "chunked"])
def test_requests_that_wait_during_a_reload_are_answered_by_replicas_that_come_after_it(
    gateway: Gateway, port: int, application: Start, data: bytes
) -> None:
    serve(gateway, hold_limit=3, auth=True, tokens={"t": token("right")})
    data = data.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer right")
    app = application("r0")

    async def go() -> list[str]:
        answers = [asyncio.create_task(ask(port, data)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: held(gateway, "hello") == 3)
        before = gateway._workers().current
        await asyncio.to_thread(
            gateway.change, lambda state: state.with_route(Route(service="other", port=free_port()))
        )
        assert gateway._workers().current != before
        await asyncio.to_thread(wait_until, lambda: held_by_current(gateway, "hello") == 3)
        assert held(gateway, "hello") == 3
        await asyncio.to_thread(arrive, gateway, app)
        return await asyncio.gather(*answers)

    answers = asyncio.run(go())
    assert statuses(answers) == [200] * 3
    assert len(app.seen) == 3
    for seen in app.seen:
        assert seen.body == (b"" if data.startswith(b"GET") else b"hello")
        assert seen.header("x-forwarded-for") == "127.0.0.1"
        assert seen.header("x-gateway-listener") is None
        assert seen.header("authorization") is None
    assert held(gateway, "hello") == 0
    assert set(gateway.replica_health("hello")) == {"r0"}
    assert set(gateway.statistics("hello")) == {"r0"}


def test_a_process_that_holds_nothing_is_understood() -> None:
    assert parse_held("hello 3 17\nother 0 1") == {"hello": (3, 17), "other": (0, 1)}
    assert parse_held("") == {}
    assert (
        parse_held("Unknown command: 'show held', but maybe one of the following ones is a better match:")
        == {}
    )


def test_a_reload_does_not_make_anybody_wait_longer(gateway: Gateway, port: int) -> None:
    serve(gateway, hold_limit=1, hold_timeout=6)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(request, port)
        wait_until(lambda: held(gateway, "hello") == 1)
        wait_until(lambda: time.monotonic() - start >= 4)
        gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
        wait_until(lambda: held_by_current(gateway, "hello") == 1)
        assert request(port).status == 503, "the bound is kept by the next process"
        assert answer.result(30).status == 503
    assert 6 <= time.monotonic() - start < 10


def test_nobody_asks_a_replica_for_a_client_that_left(
    gateway: Gateway, port: int, application: Start
) -> None:
    """HAProxy notices now or when a replica is there, and is content with the second."""
    serve(gateway, hold_limit=20, hold_timeout=600)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for client in clients:
        client.sendall(GET)
    wait_until(lambda: held(gateway, "hello") == 20)
    for client in clients:
        client.close()
    app = application("r0")
    arrive(gateway, app)
    wait_until(lambda: held(gateway, "hello") == 0, 10)
    assert request(port).status == 200
    assert len(app.seen) == 1
