"""Several deployments of one service at once: one after the other, and the latest wish is what serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.services import deployment as deploying
from prefect_dstack.store.locks import lock
from prefect_dstack.store.records import find_record, load_record, save_record
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Deploy = Callable[..., Endpoint]


def flow_runs(server: PrefectServer, name: str, state: str) -> int:
    """How many deployments are in a state."""
    return int(
        server.ask(
            "/flow_runs/count",
            flow_runs={"name": {"any_": [f"deploy {name}"]}, "state": {"type": {"any_": [state]}}},
        )
    )


def test_two_deployments_take_turns(deploy: Deploy, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = deploy()
    put_revision = deploying.put_revision
    at_work: list[str] = []
    seen: list[int] = []

    def watched(*arguments: Any, **options: Any) -> Endpoint:
        at_work.append(name)
        seen.append(len(at_work))
        try:
            return put_revision(*arguments, **options)
        finally:
            seen.append(len(at_work))
            at_work.pop()

    monkeypatch.setattr(deploying, "put_revision", watched)
    with Asking(endpoint.url) as asking, ThreadPoolExecutor() as pool:
        done = [pool.submit(deploy, env={"GREETING": word}) for word in ("one", "two")]
        results = [future.result() for future in done]
    assert asking.failures == []
    assert set(seen) == {1}, "both were at work at once"
    # Whichever had its turn first: what was asked for last is what serves.
    assert {result.revision for result in results} in ({2}, {2, 3})
    assert get(endpoint.url)["greeting"] in ("one", "two")
    assert load_record(name).active == max(result.revision for result in results)


def test_a_deployment_that_was_overtaken_while_it_waited_does_nothing(
    deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
) -> None:
    endpoint = deploy()
    results: list[Endpoint] = []
    waiting = threading.Thread(target=lambda: results.append(deploy(env={"GREETING": "late"})))
    running = flow_runs(prefect_server, name, "RUNNING")
    with lock(f"service-{name}", str(uuid4()), lambda: None, print):
        waiting.start()
        wait_until(lambda: flow_runs(prefect_server, name, "RUNNING") > running, 30)
        later = datetime.now(UTC) + timedelta(seconds=1)
        save_record(load_record(name).model_copy(update={"asked_at": later}))
    waiting.join()
    assert results == [endpoint.model_copy(update={"changed": False, "superseded": True})]
    record = find_record(name)
    assert record is not None
    assert record.last_revision == 1


def test_what_was_asked_for_when_the_clock_was_ahead_does_not_stand_in_the_way(
    deploy: Deploy, name: str
) -> None:
    deploy()
    ahead = datetime.now(UTC) + timedelta(hours=1)
    save_record(load_record(name).model_copy(update={"asked_at": ahead}))

    assert deploy(env={"GREETING": "now"}).revision == 2
