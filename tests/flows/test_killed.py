"""The deploying process may be killed at any step: the service answers on, the next deployment ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_dstack import Endpoint, reconcile_services, scale_service, stop_service
from prefect_dstack.bundles import BundleStore, collect
from prefect_dstack.domain.record import LOST
from prefect_dstack.store.records import load_record
from prefect_dstack.store.sources import resolve_infrastructure
from tests.flows.asking import Asking
from tests.flows.conftest import hello
from tests.flows.killing import approve_and_die, deploy_and_die, stop_and_die
from tests.home import Home
from tests.polling import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]


# Each attempt begins with what the one before has left.
MOST_TASKS = 30


def test_a_deployment_may_be_killed_at_any_step(
    deploy: Callable[..., Endpoint], home: Home, name: str
) -> None:
    endpoint = deploy()
    with Asking(endpoint.url) as asking:
        step = 1
        while step < MOST_TASKS and deploy_and_die(hello(name), step):
            assert asking.failures == [], f"killed at task {step}"
            step += 1
        assert 10 <= step < MOST_TASKS, "a redeploy has ten tasks at least"
        completed = deploy(force=True)
    assert asking.failures == []
    assert completed.replicas == [f"{name}-{completed.revision}-0"]
    assert [place.name for place in home.state.glob("replicas/*/")] == completed.replicas
    assert [line for line in reconcile_services(dry_run=True) if name in line] == []


@pytest.mark.parametrize("verb", [lambda name: scale_service(name, 2), stop_service])
def test_whoever_comes_next_notes_how_a_killed_deployment_has_ended(
    deploy: Callable[..., Endpoint], verb: Callable[[str], object], name: str
) -> None:
    deploy()
    assert deploy_and_die(hello(name), "verify-endpoint")
    verb(name)
    killed = load_record(name).revision(2)
    assert (killed.outcome, killed.reason) == ("failed", LOST)


def test_a_killed_stop_is_completed(deploy: Callable[..., Endpoint], home: Home, name: str) -> None:
    deploy()
    assert stop_and_die(name, "remove-replica")
    reconcile_services()
    record = load_record(name)
    assert (record.active, record.deploying, record.location) == (None, None, None)
    assert not list(home.state.glob("replicas/*/"))


def test_what_died_before_there_was_a_record_of_it_is_removed(
    deploy: Callable[..., Endpoint], home: Home, tmp_path: Path
) -> None:
    deploy()
    files = tmp_path / "files"
    files.mkdir()
    (files / "app.py").write_text("print()")
    kept = BundleStore(home.state / "bundles").put(collect(files))
    begun = home.state / "replicas" / "other-1-0"
    begun.mkdir()
    found = ["remove what is left of other-1-0", f"remove files that no revision needs: {kept.name[:12]}"]
    assert reconcile_services(dry_run=True) == found
    assert kept.is_dir()
    assert begun.is_dir()
    assert reconcile_services() == found
    assert reconcile_services(dry_run=True) == []
    assert not kept.exists()
    assert not begun.exists()


def test_what_a_killed_canary_has_left_is_undone(
    deploy: Callable[..., Endpoint], home: Home, name: str
) -> None:
    watch_canary = 9
    canary = {"strategy": "canary", "canary": {"weight": "30%", "duration": "1m"}}
    endpoint = deploy()
    with Asking(endpoint.url) as asking:
        assert deploy_and_die(hello(name, rollout=canary), watch_canary)
        wait_until(lambda: set(asking.answers) == {"1", "2"}, 20, "the canary gets requests")
        assert any(name in line for line in reconcile_services())
    assert asking.failures == []
    state = json.loads((home.state / "gateways" / "local" / "state.json").read_text())
    replicas = state["routes"][name]["replicas"]
    assert {replica: it["weight"] for replica, it in replicas.items()} == {f"{name}-1-0": 100}
    assert [place.name for place in home.state.glob("replicas/*/")] == [f"{name}-1-0"]
    assert not state["routes"][name]["compared"]


def test_an_approval_that_is_killed_leaves_what_served(deploy: Callable[..., Endpoint], name: str) -> None:
    endpoint = deploy(env={"GREETING": "0"})
    number = 0
    with Asking(endpoint.url) as asking:
        while True:
            number += 1
            deploy(env={"GREETING": str(number)}, approval=True)
            if not approve_and_die(name, number):
                break
            reconcile_services()
            record = load_record(name)
            assert (record.active, record.approval, record.deploying) == (1, None, None)
            assert [
                one.replica.name for one in resolve_infrastructure().observe(name, ["process"]).found
            ] == [f"{name}-1-0"]
    assert number > 3
    assert asking.failures == []
    assert load_record(name).active == number + 1
