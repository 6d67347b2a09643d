"""Replicas behind a router are in its route, are checked and counted, and get no request from the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from prefect_dstack.gateways.gateway import Gateway
from tests.gateways.application import Application, request
from tests.gateways.conftest import replica, serve
from tests.gateways.test_holding import GET, ask, statuses
from tests.gateways.waiting import held
from tests.polling import wait_until

pytestmark = pytest.mark.integration

Start = Callable[[str], Application]


def test_they_get_no_requests_whatever_their_weight(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway)
    router, worker = application("router"), application("worker")
    gateway.change(lambda state: state.with_replica("hello", replica(worker, direct=False)))
    gateway.change(lambda state: state.with_replica("hello", replica(router)))

    assert {request(port).body for _ in range(20)} == {b"router"}
    # A canary's weights, and the algorithm for them.
    gateway.change(lambda state: state.comparing("hello", compared=True).with_weight("hello", "worker", 200))
    assert {request(port).body for _ in range(20)} == {b"router"}
    # HAProxy calls what is well and has no weight so.
    wait_until(lambda: gateway.replica_health("hello")["worker"].status == "DRAIN", 10)
    assert gateway.statistics("hello")["worker"].requests == 0

    worker.stop()
    wait_until(lambda: gateway.replica_health("hello")["worker"].status == "DOWN", 20)
    gateway.change(lambda state: state.draining("hello", "worker").without_replica("hello", "worker"))
    assert {request(port).body for _ in range(5)} == {b"router"}


def test_requests_wait_for_a_router_though_there_are_others(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, hold_limit=10)
    gateway.change(lambda state: state.with_replica("hello", replica(application("worker"), direct=False)))

    async def go() -> list[str]:
        answers = [asyncio.create_task(ask(port, GET)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: held(gateway, "hello") == 3, 30)
        router = application("router")
        await asyncio.to_thread(
            lambda: gateway.change(lambda state: state.with_replica("hello", replica(router)))
        )
        return await asyncio.gather(*answers)

    answers = asyncio.run(go())
    assert statuses(answers) == [200, 200, 200]
    assert all("router" in answer for answer in answers)
