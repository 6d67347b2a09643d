"""Services for the tests of the flows."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack import Endpoint
from tests.home import Home
from tests.prefect_server import PrefectServer

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


@pytest.fixture
def stop(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[Callable[[], None]]:
    """Stops the service of the test; called once more at the end in any case."""
    from prefect_dstack import stop_service
    from prefect_dstack.errors import NotFoundError

    def stop() -> None:
        stop_service(name)

    yield stop
    try:
        stop()
    except NotFoundError:
        pass


@pytest.fixture
def deploy(stop: Callable[[], None], name: str) -> Callable[..., Endpoint]:
    """Deploys the service of the test from this process; it is stopped at the end."""
    from prefect_dstack import deploy_service

    def deploy(configuration: Any = None, **keys: Any) -> Endpoint:
        options = {option: keys.pop(option) for option in ("force",) if option in keys}
        return deploy_service(hello(name, **keys) if configuration is None else configuration, **options)

    return deploy
