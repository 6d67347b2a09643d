"""The Prefect deployment that a configuration names judges new revisions before they get a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from prefect_dstack import Endpoint, Evaluation, Release, adeploy_service
from prefect_dstack.errors import ConfigurationError, DeploymentError, RejectedError, UserError
from prefect_dstack.store.records import find_record, load_record
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, get, hello, stop
from tests.flows.seen import runs_of
from tests.flows.test_documented import program
from tests.flows.test_evaluation import running
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "stop"]

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Deploy = Callable[..., Endpoint]
JUDGES = Path(__file__).with_name("judges.py").read_text()


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer) -> Iterator[None]:
    """The deployments of `judges.py`, and a process that runs them."""
    with program(tmp_path_factory.mktemp("judges"), JUDGES, "other/default"):
        yield


def keys(greeting: str, evaluation: str = "judge/default", **rollout: Any) -> dict[str, Any]:
    return {"env": {"GREETING": greeting}, "rollout": {"evaluation": evaluation, **rollout}}


@pytest.mark.usefixtures("judges")
def test_a_deployment_lets_pass_and_rejects(deploy: Deploy, name: str, prefect_server: PrefectServer) -> None:
    endpoint = deploy(**keys("one"))
    with Asking(endpoint.url) as asking:
        with pytest.raises(
            RejectedError, match=r"rejected it with a score of 0\.9: bad after one; .*@1 serves"
        ):
            deploy(**keys("bad"))
        with pytest.raises(RejectedError, match=r"its evaluation rejected it: .*no holdout set"):
            deploy(**keys("broken"))
        assert set(asking.answers) == {"1"}, "no client saw them"
        assert deploy(**keys("four")).revision == 4
    assert asking.failures == []
    assert running(name) == [4]
    found = load_record(name).revision(4).evaluation
    assert found == Evaluation(
        passed=True, score=0.9, reason="four after one", table=[{"revision": 4, "weight": 0.0}]
    )

    (run,) = runs_of(prefect_server, "evaluate", f"{name}@4")
    assert f"service:{name}" in run["tags"]
    (deployed, *_) = reversed(runs_of(prefect_server, "deploy", name))
    with get_client(sync_client=True) as client:
        parent = client.read_task_run(run["parent_task_run_id"])
    assert str(parent.flow_run_id) == deployed["id"]


@pytest.mark.usefixtures("judges")
def test_what_cannot_be_read_does_not_pass(deploy: Deploy, name: str) -> None:
    deploy(**keys("one"))
    for greeting, evaluation, words in (
        ("two", "forgetful/default", r"has not kept what it returned; give its flow @flow\(persist_result"),
        ("odd", "judge/default", r"returned str; return prefect_dstack\.Evaluation"),
        ("two", "other/default", r"must take the parameter release"),
    ):
        with pytest.raises(UserError, match=words):
            deploy(**keys(greeting, evaluation))
        assert running(name) == [1]


def test_a_deployment_that_is_not_there_is_named_before_anything_starts(deploy: Deploy, name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"rollout\.evaluation: there is no Prefect deployment 'a/b'"
    ):
        deploy(**keys("one", "a/b"))
    assert find_record(name) is None


@pytest.mark.usefixtures("judges")
def test_a_function_is_asked_instead(deploy: Deploy, name: str) -> None:
    def instead(release: Release) -> bool:
        return get(release.candidate_url)["greeting"] == "bad"

    assert deploy(**keys("bad"), evaluate=instead).revision == 1
    assert running(name) == [1]


def test_a_deployment_that_nobody_runs_is_not_waited_for(
    deploy: Deploy, name: str, prefect_server: PrefectServer
) -> None:
    @flow(name=f"nobody-{name}")
    def nobody(release: Release) -> bool:
        return True

    asyncio.run(nobody.ato_deployment("default")).apply()
    with pytest.raises(DeploymentError, match=r"no worker has started a run of .* within 1 s: start one"):
        deploy(**keys("one", f"nobody-{name}/default", evaluation_timeout=1))
    (run,) = runs_of(prefect_server, "evaluate", f"{name}@1")
    assert run["state_type"] in ("CANCELLING", "CANCELLED")
    assert running(name) == []


@pytest.mark.usefixtures("judges")
def test_a_cancelled_deployment_takes_its_evaluation_with_it(
    deploy: Deploy, name: str, prefect_server: PrefectServer
) -> None:
    endpoint = deploy(**keys("one"))

    def state() -> str:
        return "".join(run["state_type"] for run in runs_of(prefect_server, "evaluate", f"{name}@2"))

    async def given_up() -> None:
        deployment = asyncio.create_task(adeploy_service(hello(name, **keys("slow"))))
        await asyncio.to_thread(wait_until, lambda: state() == "RUNNING", 60, "it is being evaluated")
        deployment.cancel()
        await asyncio.wait([deployment])

    asyncio.run(given_up())
    wait_until(lambda: state() == "CANCELLED", 60, "the evaluation is cancelled", interval=0.5)
    assert running(name) == [1]
    assert get(endpoint.url)["revision"] == "1"
