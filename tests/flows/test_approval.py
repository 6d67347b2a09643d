"""A new revision waits for a person: no process waits, no client sees it, and what served serves on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import pytest
from prefect import flow

from prefect_dstack import (
    Endpoint,
    Evaluation,
    approve_service,
    reconcile_services,
    reject_service,
    rollback_service,
    scale_service,
)
from prefect_dstack.errors import ConflictError, PrefectDstackError
from prefect_dstack.services.overview import overview
from prefect_dstack.store.records import load_record
from prefect_dstack.store.sources import resolve_infrastructure
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, get, hello, stop
from tests.flows.seen import events_of, runs_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "stop"]

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]
APPROVAL = {"approval": True}


def running(name: str) -> list[str]:
    found = resolve_infrastructure().observe(name, ["process"]).found
    return sorted(one.replica.name for one in found)


def wait_for_approval(deploy: Deploy, **keys: Any) -> Endpoint:
    """Deploy two revisions, the second of which waits."""
    deploy(env={"GREETING": "one"}, **keys)
    return deploy(env={"GREETING": "two"}, approval=True, **keys)


def test_nobody_sees_a_revision_before_it_is_approved(
    deploy: Deploy, name: str, prefect_server: PrefectServer
) -> None:
    first = deploy(env={"GREETING": "one"}, replicas=2)
    judge = Evaluation(passed=True, score=0.9, reason="good", table=[{"revision": 2, "accuracy": 0.9}])
    with Asking(first.url) as asking:
        second = deploy(env={"GREETING": "two"}, replicas=2, rollout=APPROVAL, evaluate=lambda _: judge)
        assert (second.revision, second.changed, second.url) == (1, False, first.url)
        assert second.waiting is not None
        assert get(second.waiting.private_url)["revision"] == "2"
        (service,) = overview([name])
        assert (service.state, service.serving, service.revision) == ("waiting", 2, 1)
        assert service.approval == second.waiting
        assert f"{name}@2 waits: prefect-dstack approve {name}" in service.problems[0]
        assert reconcile_services() == []
        scale_service(name, 3)
        assert running(name) == [f"{name}-1-0", f"{name}-1-1", f"{name}-1-2", f"{name}-2-0"]
        assert set(asking.answers) == {"1"}
        candidate = get(second.waiting.private_url)["pid"]

        third = approve_service(name, "looks good", by="Ada")

    assert asking.failures == []
    assert (third.revision, third.waiting, get(third.url)["revision"]) == (2, None, "2")
    assert running(name) == [f"{name}-2-0", f"{name}-2-1", f"{name}-2-2"]
    assert get(second.waiting.private_url)["pid"] == candidate, "what was looked at is what serves"
    revision = load_record(name).revision(2)
    assert revision.decision is not None
    assert (revision.decision.by, revision.decision.reason) == ("Ada", "looks good")
    assert revision.evaluation == judge
    state = runs_of(prefect_server, "deploy", name)[1]["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "WaitingForApproval")
    assert (
        state["message"] == f"{name}@2 waits: prefect-dstack approve {name}, or prefect-dstack reject {name}"
    )
    (shown,) = prefect_server.ask(
        "/artifacts/latest/filter", artifacts={"key": {"any_": [f"{name}-service"]}}
    )
    for part in ("| 2 | 0.9 |", "+  GREETING: two", "Passed, score 0.9: good", "approved by Ada"):
        assert part in shown["data"]
    wait_until(
        lambda: all(
            events_of(prefect_server, f"prefect-dstack.service.{kind}", name)
            for kind in ("approval-requested", "approved")
        ),
        30,
        "automations can follow it",
    )


def test_what_is_rejected_goes(deploy: Deploy, name: str, prefect_server: PrefectServer) -> None:
    endpoint = wait_for_approval(deploy)
    reject_service(name, "too slow", by="Ada")

    assert running(name) == [f"{name}-1-0"]
    assert get(endpoint.url)["revision"] == "1"
    revision = load_record(name).revision(2)
    assert (revision.outcome, revision.reason) == ("failed", "rejected by Ada: too slow")
    assert overview([name])[0].problems == []
    with pytest.raises(ConflictError, match="no revision waits"):
        approve_service(name)
    wait_until(lambda: events_of(prefect_server, "prefect-dstack.service.rejected", name), 30, "the event")


def test_what_nobody_approves_in_time_goes(deploy: Deploy, name: str, prefect_server: PrefectServer) -> None:
    rollout = {"approval": True, "approval_timeout": 1}
    deploy(env={"GREETING": "one"})
    deploy(env={"GREETING": "two"}, rollout=rollout)
    wait_until(lambda: load_record(name).pending() is None, 30, "it has expired")
    assert reconcile_services() == [
        f"{name}: remove {name}-2-0",
        f"{name}: give up {name}@2, as nobody approved it",
    ]
    assert running(name) == [f"{name}-1-0"]
    wait_until(lambda: events_of(prefect_server, "prefect-dstack.service.rejected", name), 30, "the event")
    assert not events_of(prefect_server, "prefect-dstack.service.degraded", name), "clients lacked nothing"

    deploy(env={"GREETING": "three"}, rollout=rollout)
    wait_until(lambda: load_record(name).pending() is None, 30, "it has expired")
    with pytest.raises(ConflictError, match="and is removed now; deploy it again"):
        approve_service(name)
    assert running(name) == [f"{name}-1-0"]
    assert load_record(name).revision(3).reason == "nobody approved it in time"


def test_a_later_deployment_replaces_what_waits(deploy: Deploy, stop: Callable[[], None], name: str) -> None:
    wait_for_approval(deploy)
    again = deploy(env={"GREETING": "two"}, approval=True)
    assert again.waiting is not None
    assert again.waiting.revision == 2, "it is the same"
    third = deploy(env={"GREETING": "three"}, approval=True)
    assert third.waiting is not None
    assert running(name) == [f"{name}-1-0", f"{name}-3-0"]
    assert load_record(name).revision(2).reason == f"it was replaced by {name}@3"
    assert not deploy(env={"GREETING": "one"}).changed, "that serves already"
    assert running(name) == [f"{name}-1-0"]
    deploy(env={"GREETING": "four"}, approval=True)
    assert deploy(env={"GREETING": "five"}).revision == 5
    deploy(env={"GREETING": "six"}, approval=True)
    assert rollback_service(name).revision == 1
    assert running(name) == [f"{name}-1-0"]
    deploy(env={"GREETING": "seven"}, approval=True)
    stop()
    assert running(name) == []
    assert load_record(name).approval is None
    assert load_record(name).revision(7).reason == "the service was stopped"


def test_a_first_revision_waits_too(deploy: Deploy, name: str) -> None:
    endpoint = deploy(approval=True)
    assert endpoint.waiting is not None
    with pytest.raises(HTTPError, match="503"):
        get(endpoint.url)
    assert overview([name])[0].state == "waiting"
    assert reconcile_services() == []
    assert get(endpoint.waiting.private_url)["revision"] == "1"
    approved = approve_service(name)
    assert (approved.url, get(approved.url)["revision"]) == (endpoint.url, "1")


def test_a_canary_begins_once_it_is_approved(deploy: Deploy, name: str) -> None:
    rollout = {"strategy": "canary", "canary": {"weight": "50%", "duration": 1}, "approval": True}
    deploy(env={"GREETING": "one"}, rollout=rollout)
    waiting = deploy(env={"GREETING": "two"}, rollout=rollout).waiting
    assert waiting is not None
    candidate = get(waiting.private_url)["pid"]
    assert get(approve_service(name).url)["pid"] == candidate


def test_settings_alone_need_no_approval(deploy: Deploy, name: str) -> None:
    deploy(env={"GREETING": "one"})
    assert deploy(env={"GREETING": "one"}, client_max_body_size="2MB", approval=True).waiting is None


def test_a_flow_that_deploys_goes_on(deploy: Deploy, name: str) -> None:
    @flow
    def pipeline() -> Endpoint:
        from prefect_dstack import deploy_service

        return deploy_service(hello(name, env={"GREETING": "two"}), approval=True)

    deploy(env={"GREETING": "one"})
    endpoint = pipeline()
    assert endpoint.waiting is not None
    reject_service(name)


def test_a_candidate_that_died_is_started_again(deploy: Deploy, name: str, home: Home) -> None:
    wait_for_approval(deploy)
    lock = home.state / "replicas" / f"{name}-2-0" / "supervisor.lock"
    os.kill(int(lock.read_text()), signal.SIGKILL)
    gone = f"no replica of {name}@2 runs; approve starts them again"
    wait_until(lambda: gone in overview([name])[0].problems, 30, "it is seen that it died")
    assert get(approve_service(name).url)["revision"] == "2"


def test_a_revision_that_fails_after_its_approval_leaves_what_served(deploy: Deploy, name: str) -> None:
    deploy(env={"GREETING": "one"}, replicas=2)
    waiting = deploy(
        commands=[
            f"mkdir {name} || exit 3",
            *hello(name)["commands"],
        ],
        replicas=2,
        approval=True,
    )
    assert waiting.waiting is not None
    with pytest.raises(PrefectDstackError, match=f"{name}@1 serves on"):
        approve_service(name)
    assert running(name) == [f"{name}-1-0", f"{name}-1-1"]
    assert load_record(name).approval is None
