"""A replica that fails after it was ready gets no more requests, until it is well again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefect_dstack import Endpoint
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace
from tests.flows.asking import Asking
from tests.home import Home
from tests.polling import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

APP = Path(__file__).parents[1] / "testbed" / "app.py"
KEYS = {"commands": [f"exec python3 {APP}"], "replicas": 2}


def members(home: Home, name: str) -> dict[str, dict[str, Any]]:
    """The replicas that the gateway knows."""
    state = json.loads((home.state / "gateways" / "local" / "state.json").read_text())
    replicas = state["routes"][name]["replicas"]
    assert isinstance(replicas, dict)
    return replicas


def health(home: Home, name: str) -> dict[str, str]:
    """What the gateway thinks of each replica."""
    found = Gateway(LocalPlace("local", home.state / "gateways" / "local")).replica_health(name)
    return {replica: it.status for replica, it in found.items()}


@contextlib.contextmanager
def not_restarted(home: Home, replica: str) -> Iterator[psutil.Process]:
    """Keep what would restart a replica from doing so."""
    supervisor = psutil.Process(int((home.state / "replicas" / replica / "supervisor.lock").read_text()))
    (program,) = supervisor.children()
    supervisor.suspend()
    try:
        yield program
    finally:
        supervisor.resume()


def test_a_replica_whose_probe_fails_is_left_out_until_it_passes_again(
    deploy: Callable[..., Endpoint], home: Home, name: str
) -> None:
    endpoint = deploy(**KEYS)
    sick, well = sorted(members(home, name))
    port = members(home, name)[sick]["port"]

    def answer_probes_with(status: int) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/health?status={status}", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    with Asking(endpoint.url, "pid") as asking:
        wait_until(lambda: len(asking.answers) == 2, 20, "both answer")
        answer_probes_with(500)
        wait_until(lambda: health(home, name) == {sick: "DOWN", well: "UP"}, 20)
        asking.answers.clear()
        wait_until(lambda: sum(asking.answers.values()) >= 20, 20)
        assert len(asking.answers) <= 2  # a request may have been under way
        asking.answers.clear()
        wait_until(lambda: sum(asking.answers.values()) >= 20, 20)
        assert len(asking.answers) == 1
        answer_probes_with(200)
        wait_until(lambda: health(home, name) == {sick: "UP", well: "UP"}, 20)
        wait_until(lambda: len(asking.answers) == 2, 20, "both answer again")
    assert asking.failures == []


def test_a_replica_that_refuses_connections_costs_no_request(
    deploy: Callable[..., Endpoint], home: Home, name: str
) -> None:
    endpoint = deploy(**KEYS, probes=[{"type": "http", "url": "/health", "until_ready": True}])
    sick, well = sorted(members(home, name))
    with Asking(endpoint.url, "pid") as asking:
        wait_until(lambda: len(asking.answers) == 2, 20, "both answer")
        with not_restarted(home, sick) as program:
            os.kill(program.pid, signal.SIGKILL)
            wait_until(lambda: health(home, name) == {sick: "DOWN", well: "UP"}, 20)
        wait_until(lambda: health(home, name) == {sick: "UP", well: "UP"}, 20)
        wait_until(lambda: len(asking.answers) == 3, 20, "its successor answers")
    assert asking.failures == []
