"""What a gateway has counted can be read whatever becomes of its processes and replicas."""

from __future__ import annotations

from collections.abc import Callable

from prefect_dstack.gateways.counters import Ledger
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, request
from tests.gateways.conftest import serve
from tests.polling import wait_until


def reload(gateway: Gateway) -> None:
    other = free_port()
    gateway.change(lambda state: state.with_route(Route(service=f"other-{other}", port=other)))


def test_a_former_process_stays_until_it_is_let_go(gateway: Gateway, port: int) -> None:
    (before,) = [it.process for it in gateway.samples()[0]]
    held = gateway.place.hold(5)

    reload(gateway)
    for _ in range(3):
        assert [it.process for it in gateway.samples()[0] if not it.current] == [before]
    held.close()

    wait_until(lambda: [it.current for it in gateway.samples()[0]] == [True], 10, "it has ended")


def test_what_a_replica_has_answered_outlives_it(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    first, second = application("hello-1-0"), application("hello-1-1")
    serve(gateway, first, second)
    for _ in range(4):
        assert request(port).status == 200
    ledger = Ledger()

    gateway.change(lambda state: state.without_replica("hello", "hello-1-0"))
    assert request(port).status == 200
    for _ in range(2):
        samples, departed = gateway.samples()
        ledger.take(samples, departed)

    assert list(samples[0].replicas["hello"]) == ["hello-1-1"]
    assert {replica: counters["2xx"] for (_, replica), counters in ledger.totals.items()} == {
        "": 0,
        "hello-1-0": 2,
        "hello-1-1": 3,
    }


def test_samples_have_what_is_open_and_what_the_gateway_answers_itself(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    serve(gateway, application("hello-1-0"), auth=True)
    ledger = Ledger()

    assert request(port).status == 401
    for _ in range(2):
        samples, departed = gateway.samples()
        ledger.take(samples, departed)

    assert ledger.totals["hello", ""]["4xx"] == 1
    row = samples[0].replicas["hello"]["hello-1-0"]
    assert (row.in_flight, row.queued, row.up) == (0, 0, True)
