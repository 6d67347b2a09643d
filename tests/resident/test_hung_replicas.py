"""A replica that accepts requests and never answers is replaced, while the others serve on."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.flows.replace import replace_replica
from prefect_dstack.store.records import load_record
from tests.flows.conftest import deploy, stop
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.resident.test_controller import controller

__all__ = ["controller", "deploy", "stop"]

pytestmark = pytest.mark.integration

# After GET /hang, nothing is answered any more.
HANGS = """
import http.server, json, os, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/hang":
            Handler.hangs = True
        elif getattr(Handler, "hangs", False):
            threading.Event().wait()
        body = json.dumps({"pid": os.getpid(), "replica": os.environ["PREFECT_DSTACK_REPLICA"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
KEYS: dict[str, Any] = {
    "commands": [f"exec python3 -c '{HANGS}'"],
    "replicas": 2,
    "probes": [{"type": "http", "url": "/health", "interval": "1s", "timeout": "1s"}],
    "restart_after": "2s",
}


def ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
    return {**found, "replica": found["replica"].rpartition("/")[2]}


def answering(url: str) -> dict[str, int]:
    """The process of each replica that answers, by its name."""
    found: dict[str, int] = {}
    for _ in range(8):
        try:
            answer = ask(url)
        except OSError:
            continue
        found[answer["replica"]] = answer["pid"]
    return found


@pytest.fixture
def both(deploy: Callable[..., Endpoint]) -> tuple[Endpoint, dict[str, int]]:
    endpoint = deploy(**KEYS)
    return (
        endpoint,
        wait_until(lambda: len(found := answering(endpoint.url)) == 2 and found, 30, "both answer"),
    )


def test_a_hung_replica_is_replaced_and_the_other_one_stays(
    both: tuple[Endpoint, dict[str, int]], name: str, controller: None, prefect_server: PrefectServer
) -> None:
    endpoint, before = both

    hung = ask(f"{endpoint.url}/hang")["replica"]
    wait_until(lambda: hung in load_record(name).replacements, 60, "it is noticed")
    after = wait_until(lambda: len(found := answering(endpoint.url)) == 2 and found, 60, "both answer")

    assert {it for it in before if before[it] != after[it]} == {hung}
    record = load_record(name)
    assert (record.active, record.replacements[hung].times) == (1, 1)
    assert record.replacements[hung].reason.startswith("its probe has failed for ")
    runs = prefect_server.ask("/flow_runs/filter", flows={"name": {"any_": ["replace-replica"]}})
    (run,) = [run for run in runs if hung in run["name"]]
    assert run["name"].startswith(f"replace {hung}: its probe has failed for ")


def test_one_that_answers_is_left_alone(both: tuple[Endpoint, dict[str, int]], name: str) -> None:
    endpoint, before = both

    assert replace_replica(name, f"{name}-1-0") is False

    assert answering(endpoint.url) == before
    assert load_record(name).replacements == {}
