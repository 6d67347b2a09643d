"""A deployment that is killed in the middle is undone by the controller, on its own and within seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.domain.record import LOST
from prefect_dstack.resident import controller as module
from prefect_dstack.store.records import load_record
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, hello, stop
from tests.flows.killing import deploy_and_die
from tests.flows.seen import events_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.resident.test_controller import controller

__all__ = ["controller", "deploy", "stop"]

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_full_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first, which is over before anything has died."""
    monkeypatch.setattr(module, "FULL_PASS", 100_000.0)


def test_what_a_killed_deployment_has_left_is_undone(
    deploy: Callable[..., Endpoint], home: Home, name: str, prefect_server: PrefectServer, controller: None
) -> None:
    endpoint = deploy()
    with Asking(endpoint.url) as asking:
        assert deploy_and_die(hello(name, env={"GREETING": "two"}), "register-route")
        wait_until(lambda: load_record(name).deploying is None, 60, "it is taken back")
    assert asking.failures == []

    record = load_record(name)
    assert (record.active, record.revision(2).outcome, record.revision(2).reason) == (1, "failed", LOST)
    assert [place.name for place in home.state.glob("replicas/*/")] == [f"{name}-1-0"]
    dead = prefect_server.ask("/flow_runs/filter", flow_runs={"id": {"any_": [record.revision(2).flow_run]}})
    assert [run["state_type"] for run in dead] == ["CRASHED"]

    def told() -> list[str]:
        found = events_of(prefect_server, "prefect-dstack.service.restored", name)
        return [event["payload"]["reason"] for event in found]

    assert wait_until(told, 30, "an event tells") == [LOST]
