"""A deployment that takes too long, or whose caller gives up: nothing half made is left of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from prefect_dstack import Endpoint, adeploy_service, deploy_service
from tests.flows.asking import Asking
from tests.flows.conftest import HELLO, hello
from tests.flows.seen import record_of, runs_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

# A client that is interrupted at any moment may leave its connection to the collector.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Deploy = Callable[..., Endpoint]

NEVER_READY = {"commands": ["echo starting", "exec sleep 300"], "rollout": {"timeout": "2m"}}


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Nothing that a test has left to the collector troubles another module."""
    yield
    gc.collect()


@pytest.fixture
def served(deploy: Deploy, home: Home, name: str) -> Callable[[Callable[[], Any], type[BaseException]], None]:
    """Deploys, then something that ends early, and looks at what is left."""

    def check(attempt: Callable[[], Any], kind: type[BaseException]) -> None:
        endpoint = deploy()
        before = sorted(home.state.glob("replicas/*/"))
        with Asking(endpoint.url) as asking:
            with pytest.raises(kind):
                attempt()
            asking.answers.clear()
            wait_until(lambda: asking.answers["1"] > 10, 20, "it serves on")
        assert asking.failures == []
        assert sorted(home.state.glob("replicas/*/")) == before
        assert not deploy().changed

    return check


Served = Callable[[Callable[[], Any], type[BaseException]], None]


def test_a_flow_that_times_out_says_so_in_the_history(
    served: Served, name: str, prefect_server: PrefectServer
) -> None:
    impatient = deploy_service.with_options(timeout_seconds=8)

    served(lambda: impatient(hello(name, **NEVER_READY)), TimeoutError)

    record = record_of(prefect_server, name)
    assert (record.active, record.deploying) == (1, None)
    assert (record.revision(2).outcome, record.revision(2).reason) == ("failed", "it timed out")
    assert runs_of(prefect_server, "deploy", name)[1]["state"]["name"] == "TimedOut"


def test_an_asynchronous_flow_that_times_out_interrupts_it(
    served: Served, name: str, prefect_server: PrefectServer
) -> None:
    @flow(timeout_seconds=10)
    async def training() -> Endpoint:
        return await adeploy_service(hello(name, **NEVER_READY))

    served(lambda: asyncio.run(training()), TimeoutError)

    record = record_of(prefect_server, name)
    assert (record.active, record.deploying, record.revision(2).outcome) == (1, None, "failed")
    run = runs_of(prefect_server, "deploy", name)[1]
    assert run["state"]["type"] in ("CRASHED", "FAILED", "CANCELLED")


def test_a_task_that_is_cancelled_interrupts_it(
    served: Served, home: Home, name: str, prefect_server: PrefectServer
) -> None:
    async def give_up() -> None:
        deploying = asyncio.create_task(adeploy_service(hello(name, **NEVER_READY)))
        place = home.state / "replicas" / f"{name}-2-0"
        await asyncio.to_thread(wait_until, place.is_dir, 60, "the replica is there")
        deploying.cancel()
        await deploying

    served(lambda: asyncio.run(give_up()), asyncio.CancelledError)

    record = record_of(prefect_server, name)
    assert (record.active, record.deploying, record.revision(2).outcome) == (1, None, "failed")


def test_a_deployment_that_is_waited_for_works_as_ever(deploy: Deploy, name: str, tmp_path: Path) -> None:
    async def both() -> Endpoint:
        first = await adeploy_service(hello(name))
        second = await adeploy_service(hello(name, commands=["sleep 1", HELLO]))
        assert (first.revision, second.revision) == (1, 2)
        return second

    assert asyncio.run(both()).changed
