"""Which replicas go, when some must: the least loaded, and those whose machines are about to go."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack import Endpoint, scale_service
from prefect_dstack.domain.record import AUTOSCALER
from prefect_dstack.flows.substitute import substitute_replicas
from prefect_dstack.store.records import load_record
from tests.flows.asking import Asking
from tests.flows.conftest import HELLO, deploy, stop
from tests.flows.seen import events_of
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "stop"]

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]

# `/open` says which replica it is, and ends with the file that the request names.
STREAMS = """
import http.server, json, os, pathlib, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        body = {"replica": os.environ["PREFECT_DSTACK_REPLICA"].rpartition("/")[2]}
        self.wfile.write(json.dumps(body).encode() + b"\\n")
        self.wfile.flush()
        while self.path.startswith("/open") and not pathlib.Path(self.path.partition("=")[2]).exists():
            time.sleep(0.05)
        self.wfile.write(b"whole")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
KEYS: dict[str, Any] = {"commands": [f"exec python3 -c '{STREAMS}'"], "probes": None}


def opened(endpoint: Endpoint, end: Path) -> tuple[str, tuple[HTTPResponse, Path]]:
    """A stream and what ends it, by the replica that it comes from."""
    stream = urllib.request.urlopen(f"{endpoint.url}/open?end={end}", timeout=60)
    return json.loads(stream.readline())["replica"], (stream, end)


def test_the_least_loaded_goes_and_no_stream_has_to_end_for_it(
    deploy: Deploy, name: str, tmp_path: Path
) -> None:
    endpoint = deploy(**KEYS, replicas=3)
    streams = dict(opened(endpoint, tmp_path / str(number)) for number in range(3))
    assert streams.keys() == {f"{name}-1-0", f"{name}-1-1", f"{name}-1-2"}
    ended, end = streams.pop(f"{name}-1-0")
    end.touch()
    assert ended.read() == b"whole"

    fewer = scale_service(name, 2)

    assert fewer.replicas == [f"{name}-1-1", f"{name}-1-2"]
    for stream, end in streams.values():
        end.touch()
        assert stream.read() == b"whole"
    # A change of settings leaves them alone, and so does the same number again; new replicas begin anew.
    assert deploy(**KEYS, replicas=2, retain=3).replicas == fewer.replicas
    assert not scale_service(name, 2).changed
    assert deploy(**KEYS, replicas=2, env={"NEW": "1"}).replicas == [f"{name}-3-0", f"{name}-3-1"]


def test_others_serve_before_those_that_are_to_go_are_drained(
    deploy: Deploy, name: str, prefect_server: PrefectServer
) -> None:
    endpoint = deploy(replicas=2, rollout={"max_surge": 0, "max_unavailable": 1})

    with Asking(endpoint.url) as asking:
        assert substitute_replicas(name, [f"{name}-1-0"], "its host is to go")
        assert substitute_replicas(name, [f"{name}-1-0"], "its host is to go") is False

    assert asking.failures == []
    record = load_record(name)
    assert record.endpoint is not None
    assert record.endpoint.replicas == [f"{name}-1-1", f"{name}-1-2"]
    assert (record.active, record.wanted_numbers) == (1, (1, 2))
    restored = "prefect-dstack.service.restored"
    wait_until(lambda: events_of(prefect_server, restored, name), 30, "the event that it is over")
    (event,) = events_of(prefect_server, "prefect-dstack.service.interrupted", name)
    assert event["payload"] == {"replicas": [f"{name}-1-0"], "reason": "its host is to go"}


def test_an_autoscaler_that_had_to_wait_changes_nothing_that_somebody_has_pinned(
    deploy: Deploy, name: str
) -> None:
    deploy(replicas="1..4", scaling={"metric": "rps", "target": 10}, commands=["sleep 3", HELLO])
    with ThreadPoolExecutor(2) as callers:
        by_hand = callers.submit(scale_service, name, 2)
        wait_until(lambda: load_record(name).deploying is not None, 30, "it is being scaled")
        decided = callers.submit(scale_service, name, 3, set_by=AUTOSCALER, pin=False)

        assert by_hand.result().changed
        assert not decided.result().changed

    assert load_record(name).wanted_replicas == 2
