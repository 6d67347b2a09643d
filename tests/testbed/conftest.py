"""Hosts shared by the tests of the testbed, and how those tests speak to them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed


def get(address: str, port: int = 8000, path: str = "/", timeout: float = 2.0) -> Any:
    """The JSON that an application answers."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def get_when_ready(address: str, port: int = 8000, path: str = "/") -> Any:
    """The same, as soon as it answers."""

    def answer() -> Any:
        try:
            return get(address, port, path)
        except (OSError, http.client.HTTPException):
            return None

    return wait_until(answer, 20, f"{address}:{port} answers")


@pytest.fixture(scope="package")
def pair(testbed: Testbed) -> Iterator[list[Host]]:
    """Two hosts that serve the application on port 8000, on one internal network."""
    hosts = testbed.hosts("alpha", "beta", internal_network="10.78.0.0/24")
    for host in hosts:
        load_image(host, "app")
        run = ["docker", "run", "-d", "--name", "app", "-p", "8000:8000", "-e", f"SERVICE={host.name}"]
        host.check([*run, "--restart", "unless-stopped", "testbed/app:1"])
    for host in hosts:
        get_when_ready(host.address)
    yield hosts
    testbed.remove(*hosts)
