"""A change touches only what it must: replicas that need not be replaced go on running."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefect_dstack import Endpoint
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.home import Home

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def processes(home: Home) -> dict[str, str]:
    """The replicas that run, each with the process that keeps it running."""
    return {
        lock.parent.name: lock.read_text() for lock in sorted(home.state.glob("replicas/*/supervisor.lock"))
    }


def test_settings_change_without_new_replicas(deploy: Callable[..., Endpoint], home: Home, name: str) -> None:
    endpoint = deploy()
    first = processes(home)
    with Asking(endpoint.url) as asking:
        assert not deploy().changed
        settings = {
            "client_max_body_size": "1KB",
            "cors": {"allow_origins": ["https://example.com"]},
            "probes": [{"type": "http", "url": "/health", "interval": "2s"}],
            "rate_limits": [{"prefix": "/limited", "rps": 1}],
            "retain": 3,
            "stop_duration": "1m",
        }
        changed = deploy(**settings)
        assert changed.changed
        assert changed.revision == 2
        assert changed.replicas == [f"{name}-1-0"]
        assert processes(home) == first

        more = deploy(**settings, replicas=3)
        assert more.replicas == [f"{name}-1-{number}" for number in range(3)]
        assert first.items() < processes(home).items()
        grown = processes(home)

        fewer = deploy(**settings, replicas=2)
        assert fewer.replicas == [f"{name}-1-0", f"{name}-1-1"]
        assert {replica: pid for replica, pid in grown.items() if replica != f"{name}-1-2"} == processes(home)
    assert asking.failures == []
    assert set(asking.answers) == {"1"}
    assert get(f"{endpoint.url}/limited")["revision"] == "1"
