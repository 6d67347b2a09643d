"""A canary gets more from step to step, is judged at each, and is undone at the first that it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack import Endpoint, Evaluation, Release, approve_service, reconcile_services
from prefect_dstack.domain import canary
from prefect_dstack.errors import DeploymentError, RejectedError
from prefect_dstack.store.records import load_record
from tests.flows.asking import Asking
from tests.flows.conftest import deploy, get, hello, stop
from tests.flows.killing import deploy_and_die_when
from tests.flows.seen import events_of
from tests.flows.test_canary import BROKEN, PROBES, weights
from tests.flows.test_deployed_evaluation import judges
from tests.flows.test_evaluation import running
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "judges", "stop"]

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

Deploy = Callable[..., Endpoint]


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that steps may be short."""
    monkeypatch.setattr(canary, "ENOUGH_REQUESTS", 3)


def keys(greeting: str, *, pause: str = "3s", **rollout: Any) -> dict[str, Any]:
    terms = {"steps": ["20%", "50%"], "pause": pause, "max_latency_p95_ratio": 1000}
    return {
        "env": {"GREETING": greeting},
        "probes": PROBES,
        "rollout": {"strategy": "canary", "canary": terms, **rollout},
    }


def share(home: Home, name: str, revision: int) -> float:
    """The share of the requests that the gateway gives a revision, in percent."""
    shared = weights(home, name)
    own = sum(weight for replica, weight in shared.items() if replica.startswith(f"{name}-{revision}-"))
    return 100 * own / sum(shared.values())


def test_each_step_is_judged_at_its_share(
    deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
) -> None:
    seen: list[tuple[float, float]] = []

    def judge(release: Release) -> Evaluation:
        assert get(release.candidate_url)["greeting"] == "two"
        seen.append((release.weight, round(share(home, name, 2))))
        return Evaluation(passed=True, score=len(seen))

    endpoint = deploy(**keys("one"))
    with Asking(endpoint.url) as asking:
        assert deploy(**keys("two"), evaluate=judge).revision == 2
    assert asking.failures == []
    # Before the first step it is in no route.
    assert seen == [(0.0, 0), (20.0, 20), (50.0, 50)]
    assert weights(home, name) == {f"{name}-2-0": 100}
    evaluation = load_record(name).revision(2).evaluation
    assert evaluation is not None
    assert evaluation.score == 3, "the last one is kept"

    def told() -> list[float]:
        kinds = ("canary-started", "canary-advanced")
        events = [
            it for kind in kinds for it in events_of(prefect_server, f"prefect-dstack.service.{kind}", name)
        ]
        return sorted(event["payload"]["weight"] for event in events)

    wait_until(lambda: told() == [20, 50], 30, "automations can follow it")


def test_it_is_undone_at_the_first_step_that_it_does_not_pass(
    deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
) -> None:
    endpoint = deploy(**keys("one"))
    with Asking(endpoint.url) as asking:
        with pytest.raises(RejectedError, match=rf"rejected it: no more than that; {name}@1 serves on"):
            deploy(
                **keys("two"),
                evaluate=lambda it: Evaluation(passed=it.weight < 20, reason="no more than that"),
            )
        assert weights(home, name) == {f"{name}-1-0": 100}
        assert running(name) == [1]
        assert asking.failures == []
        assert not events_of(prefect_server, "prefect-dstack.service.canary-advanced", name)

        with pytest.raises(DeploymentError, match=r"the canary failed 100\.0 % of"):
            deploy(**{**keys("three", pause="1m"), "commands": [BROKEN]})
        assert weights(home, name) == {f"{name}-1-0": 100}


@pytest.mark.usefixtures("judges")
def test_after_an_approval_the_deployment_judges_the_steps(deploy: Deploy, name: str) -> None:
    rollout: dict[str, Any] = {"evaluation": "judge/default", "approval": True}
    endpoint = deploy(**keys("one"))
    with Asking(endpoint.url) as asking:
        assert deploy(**keys("two", **rollout)).waiting is not None
        first = load_record(name).revision(2).evaluation
        assert approve_service(name).revision == 2
    assert asking.failures == []
    last = load_record(name).revision(2).evaluation
    assert first is not None
    assert last is not None
    assert (first.table[0]["weight"], last.table[0]["weight"]) == (0, 50)


def test_what_was_killed_between_two_steps_is_undone(deploy: Deploy, home: Home, name: str) -> None:
    endpoint = deploy(**keys("one", pause="8s"))
    with Asking(endpoint.url) as asking:
        deploy_and_die_when(hello(name, **keys("two", pause="8s")), lambda: round(share(home, name, 2)) == 50)
        assert any(name in line for line in reconcile_services())
        assert weights(home, name) == {f"{name}-1-0": 100}
    assert asking.failures == []
    assert running(name) == [1]
