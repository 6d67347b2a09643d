"""Services for the tests of the flows."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.errors import NotFoundError
from prefect_dstack.hosts.pool import close_connections
from tests.flows.lab import Lab
from tests.home import Home
from tests.prefect_server import PrefectServer
from tests.testbed.testbed import Testbed

EXAMPLES = Path(__file__).parents[2] / "examples"
HELLO = f"exec python3 {EXAMPLES}/hello/app.py"


def hello(name: str, **keys: Any) -> dict[str, Any]:
    """A service that says hello."""
    probes = [{"type": "http", "url": "/health", "interval": "1s"}]
    return {
        "type": "service",
        "name": name,
        "port": 8000,
        "commands": [HELLO],
        "probes": probes,
        **keys,
    }


def get(url: str, timeout: float = 10) -> Any:
    """The JSON that a URL answers."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return json.load(response)


def forget(*names: str) -> None:
    """Stop services and delete what is remembered of them: pages may use the same names."""
    from prefect_dstack import delete_service, stop_service

    for name in names:
        with contextlib.suppress(NotFoundError):
            stop_service(name)
            delete_service(name)


@pytest.fixture
def stop(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[Callable[[], None]]:
    """Stops the service of the test; called at the end if the test has not."""
    from prefect_dstack import stop_service
    from prefect_dstack.store.records import find_record

    def stop() -> None:
        stop_service(name)

    yield stop
    record = find_record(name)
    if record is not None and (record.active is not None or record.approval is not None):
        stop()


@pytest.fixture
def deploy(stop: Callable[[], None], name: str) -> Callable[..., Endpoint]:
    """Deploys the service of the test from this process; it is stopped at the end."""
    from prefect_dstack import deploy_service

    def deploy(configuration: Any = None, **keys: Any) -> Endpoint:
        options = {option: keys.pop(option) for option in ("force", "evaluate", "approval") if option in keys}
        return deploy_service(hello(name, **keys) if configuration is None else configuration, **options)

    return deploy


@pytest.fixture(scope="package")
def hosts(testbed: Testbed) -> Iterator[Lab]:
    """Real hosts, in no fleet yet."""
    lab = Lab(testbed)
    yield lab
    close_connections()
    testbed.remove(*lab.all)


@pytest.fixture
def lab(hosts: Lab, prefect_server: PrefectServer, home: Home) -> Iterator[Lab]:
    """Real hosts, of which the test leaves nothing changed; no fleet and no gateway stays known."""
    from prefect_dstack.blocks import DstackGateway, DstackService, DstackSshFleet
    from prefect_dstack.store import documents

    before = hosts.traces()
    yield hosts
    for kind in (DstackService, DstackGateway, DstackSshFleet):
        for name in documents.names(kind):
            documents.delete(kind, name)
    close_connections()
    hosts.heal()
    after = hosts.traces()
    if after != before:
        hosts.clear()
    assert not (left := hosts.differences(before, after)), left
