"""A new revision is judged beside the one that serves, and gets no requests before it has passed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow, task

from prefect_dstack import Endpoint, Evaluation, Release
from prefect_dstack.errors import RejectedError, UserError
from prefect_dstack.store.records import load_record
from prefect_dstack.store.sources import resolve_infrastructure
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, stop

__all__ = ["deploy", "stop"]

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]


def revision_at(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(json.loads(answer.read())["revision"])


def running(name: str) -> list[int]:
    found = resolve_infrastructure().observe(name, ["process"]).found
    return sorted(one.replica.stamp.revision or 0 for one in found)


def test_a_release_that_passes_takes_over_without_losing_a_request(deploy: Deploy) -> None:
    seen: list[Release] = []

    def judge(release: Release) -> Evaluation:
        seen.append(release)
        assert revision_at(release.candidate_url) == "2"
        assert release.serving_url is not None
        assert revision_at(release.serving_url) == "1"
        return Evaluation(passed=True, score=0.91, table=[{"revision": 2, "accuracy": 0.91}])

    endpoint = deploy(env={"GREETING": "one"}, replicas=2)
    with Asking(endpoint.url) as asking:
        second = deploy(env={"GREETING": "two"}, replicas=2, evaluate=judge)
    assert asking.failures == []
    assert second.revision == 2
    assert revision_at(second.url) == "2"
    (release,) = seen
    assert (release.revision, release.serving_revision) == (2, 1)


def test_a_release_that_is_rejected_gets_no_request_and_goes(deploy: Deploy, name: str) -> None:
    endpoint = deploy(env={"GREETING": "one"})
    with Asking(endpoint.url) as asking, pytest.raises(RejectedError, match=r"accuracy 0\.85, at least"):
        deploy(
            env={"GREETING": "two"},
            evaluate=lambda _: Evaluation(passed=False, score=0.85, reason="accuracy 0.85, at least 0.90"),
        )
    assert asking.failures == []
    assert set(asking.answers) == {"1"}, "no client saw it"
    assert running(name) == [1]
    assert load_record(name).active == 1


def test_the_first_revision_is_evaluated_alone(deploy: Deploy, name: str) -> None:
    def judge(release: Release) -> bool:
        assert release.serving_url is None
        return revision_at(release.candidate_url) == "1"

    assert revision_at(deploy(evaluate=judge).url) == "1"


def test_tasks_flows_and_coroutines_judge_too(deploy: Deploy) -> None:
    @task
    def a_task(release: Release) -> bool:
        return release.revision == 1

    @flow
    def a_flow(release: Release) -> bool:
        return release.revision == 2

    async def a_coroutine(release: Release) -> bool:
        return release.revision == 3

    judges: list[Any] = [a_task, a_flow, a_coroutine]
    for number, judge in enumerate(judges, 1):
        assert deploy(env={"GREETING": str(number)}, evaluate=judge).revision == number


def test_what_fails_to_judge_deploys_nothing(deploy: Deploy, name: str) -> None:
    deploy(env={"GREETING": "one"})

    def broken(_: Release) -> bool:
        raise RuntimeError("no holdout set")

    with pytest.raises(RejectedError, match="rejected it: it raised RuntimeError: no holdout set"):
        deploy(env={"GREETING": "two"}, evaluate=broken)
    with pytest.raises(UserError, match=r"returned str; return prefect_dstack\.Evaluation"):
        deploy(env={"GREETING": "two"}, evaluate=lambda _: "good")
    assert running(name) == [1]


def test_settings_alone_are_not_evaluated(deploy: Deploy) -> None:
    deploy(env={"GREETING": "one"})
    second = deploy(env={"GREETING": "one"}, client_max_body_size="2MB", evaluate=lambda _: False)
    assert second.revision == 2
