"""One look at a gateway shows what all services have to bear, and how their replicas are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.observation import ServiceLoad
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, request
from tests.gateways.conftest import serve
from tests.polling import wait_until

pytestmark = pytest.mark.integration

Start = Callable[[str], Application]


def in_flight(gateway: Gateway, service: str, *replicas: str) -> int:
    return gateway.look().load(service, replicas or None).in_flight


def test_counts_the_requests_of_each_service(gateway: Gateway, port: int, application: Start) -> None:
    other = free_port()
    serve(gateway, application("r0"), application("r1"))
    serve(gateway, application("q0"), service="other", port=other)
    for _ in range(6):
        assert request(port).status == 200
    assert request(other).status == 200

    seen = gateway.look()

    assert seen.load("hello").requests == 6
    assert seen.load("hello", ["r0"]).requests == 3
    assert seen.load("other").requests == 1
    nothing = ServiceLoad(process=seen.process, requests=0, in_flight=0, queued=0, held=0)
    assert seen.load("nobody") == seen.load("nobody", ["r0"]) == nothing


def test_counts_open_requests_over_reloads(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"), application("r1"))
    with ThreadPoolExecutor(2) as clients:
        slow = [clients.submit(request, port, "/slow?seconds=5") for _ in range(2)]
        wait_until(lambda: in_flight(gateway, "hello") == 2)
        serve(gateway, application("q0"), service="other", port=free_port())
        assert in_flight(gateway, "hello") == 2, "those of the former process count too"
        assert in_flight(gateway, "hello", "r0", "r1") == 2
        assert in_flight(gateway, "hello", "r0") + in_flight(gateway, "hello", "r1") == 2
        assert in_flight(gateway, "other") == 0
        assert {answer.result().status for answer in slow} == {200}


def test_says_how_replicas_are(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"), application("r1"))
    gateway.change(lambda state: state.draining("hello", "r1"))

    health = gateway.look().health("hello")

    assert {name: it.status for name, it in health.items()} == {"r0": "UP", "r1": "DRAIN"}
    assert health == gateway.replica_health("hello")
    assert gateway.look().health("nobody") == {}
