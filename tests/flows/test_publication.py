"""What the Prefect UI shows of a service: no link that is dead, and events of one and the same resource."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack import Endpoint, reconcile_services, rollback_service, scale_service
from prefect_dstack.errors import PrefectDstackError
from tests.flows.conftest import get
from tests.flows.seen import events_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

EVENTS = (
    "deployed",
    "unchanged",
    "failed",
    "rolled-back",
    "scaled",
    "degraded",
    "restored",
    "stopped",
)


def page(server: PrefectServer, name: str) -> dict[str, Any]:
    """The page of a service: the last artifact of its key."""
    found = server.ask("/artifacts/latest/filter", artifacts={"key": {"any_": [f"{name}-service"]}}, limit=1)
    assert isinstance(found[0], dict)
    return found[0]


def run_snippet(page: str) -> str:
    """Run the Python of a page, as somebody who copies it does; return the greeting that it prints."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    return str(json.loads(ast.literal_eval(done.stdout))["greeting"])


def test_the_whole_life_of_a_service(
    deploy: Callable[..., Endpoint],
    stop: Callable[[], None],
    home: Home,
    name: str,
    prefect_server: PrefectServer,
) -> None:
    endpoint = deploy()
    assert not deploy().changed
    deploy(env={"GREETING": "two"})
    assert page(prefect_server, name)["description"] == f"{name}@2 serves at {endpoint.url}"
    with pytest.raises(PrefectDstackError):
        deploy(commands=["exit 1"])
    shown = page(prefect_server, name)
    assert endpoint.url in shown["data"]
    assert f"{name}@3 failed; {name}@2 serves on" in shown["description"]
    assert f"> **{name}@3 failed:** {name}-3-0" in shown["data"]
    assert f"**{name}@2 serves** at <{endpoint.url}>" in shown["data"]
    assert run_snippet(shown["data"]) == get(endpoint.url)["greeting"]
    rollback_service(name)
    scale_service(name, 2)
    os.kill(int((home.state / "replicas" / f"{name}-1-0" / "supervisor.lock").read_text()), signal.SIGKILL)
    assert any(name in line for line in reconcile_services())
    stop()

    shown = page(prefect_server, name)
    assert endpoint.url not in shown["data"]
    assert f"{name} does not serve" in shown["description"]

    def kinds() -> set[str]:
        return {kind for kind in EVENTS if events_of(prefect_server, f"prefect-dstack.service.{kind}", name)}

    wait_until(lambda: kinds() == set(EVENTS), 30, "all events")
    for kind in EVENTS:
        for event in events_of(prefect_server, f"prefect-dstack.service.{kind}", name):
            assert event["resource"]["prefect.resource.id"] == f"prefect-dstack.service.{name}"
            assert event["resource"]["prefect.resource.name"] == name


def test_a_first_deployment_that_fails_shows_no_link(
    deploy: Callable[..., Endpoint], name: str, prefect_server: PrefectServer
) -> None:
    with pytest.raises(PrefectDstackError):
        deploy(commands=["exit 1"])

    shown = page(prefect_server, name)
    assert "http" not in shown["data"]
    assert "it exited with code 1" in shown["data"]
