"""A router of a service is told of its replicas, and traffic goes through it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_dstack import Endpoint, reconcile_services, scale_service
from tests.controller import model_gateway
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.home import Home

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

PROGRAM = f"exec python3 {Path(model_gateway.__file__)}"


def groups(workers: int, *more: str) -> list[dict[str, Any]]:
    return [
        {"name": "router", "replicas": 1, "commands": [f"{PROGRAM} router"], "router": {"type": "smg"}},
        *({"name": role, "replicas": 1, "commands": [f"{PROGRAM} {role}"]} for role in more),
        {"name": "worker", "replicas": workers, "commands": [f"{PROGRAM} worker"]},
    ]


class Router:
    """A replica that routes, asked at its own port."""

    def __init__(self, home: Home, replica: str) -> None:
        found = json.loads((home.state / "replicas" / replica / "replica.json").read_text())
        self.url = f"http://127.0.0.1:{found['port']}/workers"

    def workers(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = httpx.get(self.url).json()["workers"]
        return listed

    def forget(self) -> None:
        for worker in self.workers():
            httpx.delete(f"{self.url}/{worker['id']}")


@pytest.mark.timeout(2400)
def test_requests_reach_replicas_through_the_router_of_their_service(
    deploy: Callable[..., Endpoint], home: Home, name: str, stop: Callable[[], None]
) -> None:
    keys = {"commands": [], "probes": [{"type": "http", "url": "/health", "interval": "1s"}]}
    endpoint = deploy(groups=groups(2), **keys)
    assert get(endpoint.url) == {"role": "worker", "revision": "1"}
    assert len(Router(home, f"{name}-1-0").workers()) == 2

    with Asking(endpoint.url) as asking:
        scale_service(name, 1, group="worker")
        assert len(Router(home, f"{name}-1-0").workers()) == 1
        deploy(groups=groups(1, "prefill"), **keys)
    assert asking.failures == []
    assert set(asking.answers) == {"1", "2"}
    router = Router(home, f"{name}-2-0")
    assert sorted(worker["worker_type"] for worker in router.workers()) == ["prefill", "regular"]

    # As after a restart.
    router.forget()
    reconcile_services()
    assert len(router.workers()) == 2
    stop()
    assert home.leftovers() == []
