"""Fixtures for tests that need real hosts or a real Docker Engine; where none can be had, they skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.testbed.engine import LocalEngine, local_engine
from tests.testbed.host import Host
from tests.testbed.requirements import docker_reason, testbed_reason
from tests.testbed.testbed import Testbed


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """A network for hosts; hosts made by `testbed.host(...)` live as long as the session."""
    reason = testbed_reason()
    if reason:
        pytest.skip(f"no testbed: {reason}")
    with Testbed() as testbed:
        yield testbed


@pytest.fixture
def make_host(testbed: Testbed) -> Iterator[Callable[..., Host]]:
    """Makes hosts as `testbed.host` does; they are removed after the test."""
    made: list[Host] = []

    def make(name: str, **options: Any) -> Host:
        host = testbed.host(name, **options)
        made.append(host)
        return host

    yield make
    testbed.remove(*made)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[LocalEngine]:
    """A Docker Engine on this machine; set `DOCKER_HOST` to its `url` for what should use it."""
    reason = docker_reason()
    if reason:
        pytest.skip(f"no Docker Engine: {reason}")
    with local_engine() as engine:
        yield engine
