"""A service follows its load: it grows, shrinks without losing a request, and wakes from nothing."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dstack import Endpoint, scale_service
from prefect_dstack.resident.controller import run_controller
from prefect_dstack.store.records import load_record
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, stop
from tests.flows.seen import events_of
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "stop"]

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]

SCALING = {
    "metric": "concurrency",
    "target": 2,
    "window": "2s",
    "scale_up_delay": "1s",
    "scale_down_delay": "4s",
}
# Each request takes a second, so that some are open at once.
SLOW = """
import http.server, json, os, time
BODY = json.dumps({"revision": 1}).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(1 if self.path == "/slow" else 0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
COMMANDS = [f"exec python3 -c '{SLOW}'"]


@pytest.fixture
def controller(prefect_server: PrefectServer) -> Iterator[None]:
    """A controller that runs meanwhile."""
    end = threading.Event()
    thread = threading.Thread(target=run_controller, args=(end,))
    thread.start()
    yield
    end.set()
    thread.join(60)
    assert not thread.is_alive()


def wanted(name: str) -> int:
    return load_record(name).wanted_replicas


def ask(url: str) -> int:
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
        return int(answer.status)


def test_grows_with_its_load_and_shrinks_without_losing_a_request(
    deploy: Deploy, name: str, controller: None, prefect_server: PrefectServer
) -> None:
    endpoint = deploy(commands=COMMANDS, replicas="1..3", scaling=SCALING, probes=None)
    assert len(endpoint.replicas) == 1
    with ThreadPoolExecutor(6) as clients:
        done = [clients.submit(ask, f"{endpoint.url}/slow") for _ in range(60)]
        wait_until(lambda: wanted(name) == 3, 40, "there are three")
        assert {future.result() for future in done} == {200}
    with Asking(endpoint.url) as asking:
        wait_until(lambda: wanted(name) == 1, 60, "it is alone again")
    assert asking.failures == []
    record = load_record(name)
    assert record.active == 1, "scaling makes no revision"
    assert record.desired is not None
    assert record.desired.set_by == "autoscaler"
    (grown, *_) = [change for change in record.scalings if "in flight, target 2" in change.reason]
    assert re.fullmatch(r"1 → [23]: [0-9.]+ in flight, target 2", grown.change)
    runs = prefect_server.ask(
        "/flow_runs/filter", flow_runs={"name": {"any_": [f"autoscale {name} {grown.change}"]}}
    )
    assert len(runs) == 1
    payloads = [
        event["payload"] for event in events_of(prefect_server, "prefect-dstack.service.scaled", name)
    ]
    assert (1, grown.replicas, grown.reason) in {(it["before"], it["after"], it["reason"]) for it in payloads}


def test_a_group_grows_with_its_own_load(deploy: Deploy, name: str, controller: None) -> None:
    groups = [
        {"name": "big", "replicas": "1..2", "scaling": SCALING, "commands": COMMANDS},
        {"name": "small", "replicas": 1, "commands": COMMANDS},
    ]
    endpoint = deploy(groups=groups, commands=(), probes=None)
    assert endpoint.replicas == [f"{name}-1-0", f"{name}-1-1"]
    with ThreadPoolExecutor(8) as clients:
        done = [clients.submit(ask, f"{endpoint.url}/slow") for _ in range(60)]
        wait_until(lambda: wanted(name) == 3, 40, "there is another one")
        assert {future.result() for future in done} == {200}
    record = load_record(name)
    assert record.desired is not None
    assert record.desired.groups == {"big": 2, "small": 1}
    assert re.fullmatch(r"2 → 3 \(big 2, small 1\): [0-9.]+ in flight, target 2", record.scalings[-1].change)
    wait_until(lambda: wanted(name) == 2, 60, "each is alone again")


def test_wakes_from_nothing_and_refuses_none_of_many(deploy: Deploy, name: str, controller: None) -> None:
    endpoint = deploy(commands=COMMANDS, replicas="0..2", scaling=SCALING, probes=None)
    wait_until(lambda: wanted(name) == 0, 60, "it has gone to sleep")
    with ThreadPoolExecutor(100) as clients:
        done = [clients.submit(ask, endpoint.url) for _ in range(100)]
        assert {future.result() for future in done} == {200}
    assert wanted(name) >= 1


def test_a_number_that_was_pinned_stays(deploy: Deploy, name: str, controller: None) -> None:
    endpoint = deploy(commands=COMMANDS, replicas="1..3", scaling=SCALING, probes=None)
    scale_service(name, 2)
    with ThreadPoolExecutor(8) as clients:
        done = [clients.submit(ask, f"{endpoint.url}/slow") for _ in range(64)]
        assert {future.result() for future in done} == {200}
    assert wanted(name) == 2
    scale_service(name, None)
    wait_until(lambda: wanted(name) == 1, 60, "the load counts again")


def test_a_replica_that_is_gone_is_replaced(
    deploy: Deploy, name: str, controller: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_dstack.hosts import supervisor
    from prefect_dstack.resident import controller as module
    from prefect_dstack.store.sources import resolve_infrastructure

    monkeypatch.setattr(module, "FULL_PASS", 2.0)
    endpoint = deploy(commands=COMMANDS, probes=None)
    (found,) = resolve_infrastructure().observe(name, ["process"]).found
    supervisor.stop(Path(found.replica.id), grace=0)
    wait_until(lambda: answers(endpoint.url), 60, "it answers again")


def answers(url: str) -> bool:
    try:
        return ask(url) == 200
    except OSError:
        return False
