"""What a gateway has counted can be read whatever becomes of its processes and replicas."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prefect_dstack.gateways.counters import Ledger
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, request
from tests.gateways.conftest import serve
from tests.gateways.waiting import held, held_by_current
from tests.gateways.world import replica
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


def totals(gateway: Gateway) -> Ledger:
    """What a controller that starts now finds."""
    ledger = Ledger()
    for _ in range(2):
        ledger.take(*gateway.samples())
    return ledger


def test_the_time_of_each_answer_is_in_its_bucket(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    serve(gateway, application("hello-1-0"), hosts=["hello.test"])
    serve(gateway, application("other-1-0"), hosts=["other.test"], service="other", access_log=True)
    for _ in range(5):
        assert request(port, "/slow?seconds=0.2", host="hello.test").status == 200
    assert request(port, "/slow?seconds=0.01", host="other.test").status == 200

    found = totals(gateway).durations

    assert set(found) == {("hello", "hello-1-0"), ("other", "other-1-0")}
    within = dict(found["hello", "hello-1-0"].cumulative())
    assert (within["0.1"], within["0.5"], within["+Inf"]) == (0, 5, 5)
    assert 1.0 <= found["hello", "hello-1-0"].seconds < 2.5
    assert sum(found["other", "other-1-0"].counts.values()) == 1


def test_the_time_of_answers_outlives_their_replica(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    serve(gateway, application("hello-1-0"), application("hello-1-1"))
    for _ in range(4):
        assert request(port).status == 200

    gateway.change(lambda state: state.without_replica("hello", "hello-1-0"))

    counted = {replica: sum(it.counts.values()) for (_, replica), it in totals(gateway).durations.items()}
    assert counted == {"hello-1-0": 2, "hello-1-1": 2}


def test_what_a_request_waits_for_a_first_replica_is_part_of_its_time_over_a_reload_too(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    serve(gateway, hold_limit=3)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(request, port)
        wait_until(lambda: held(gateway, "hello") == 1)
        wait_until(lambda: time.monotonic() - start >= 1)
        reload(gateway)
        wait_until(lambda: held_by_current(gateway, "hello") == 1)
        gateway.change(lambda state: state.with_replica("hello", replica(application("hello-1-0"))))
        assert answer.result(20).status == 200

    ((key, took),) = totals(gateway).durations.items()

    assert key == ("hello", "hello-1-0")
    assert sum(took.counts.values()) == 1
    assert 1.0 <= took.seconds <= time.monotonic() - start


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
