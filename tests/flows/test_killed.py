"""The deploying process may be killed at any step: the service answers on, the next deployment ends it."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import forkserver

import pytest

from prefect_dstack import Endpoint, reconcile_services
from tests.flows.asking import Asking
from tests.flows.conftest import hello
from tests.flows.killing import deploy_and_die
from tests.home import Home

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def started_before_any_home() -> None:
    """What starts the deployments belongs to no test's home."""
    forkserver.ensure_running()


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
