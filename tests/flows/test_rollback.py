"""Going back: at once, to any revision that is kept, and told in the history."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dstack import Endpoint, rollback_service
from prefect_dstack.errors import NotFoundError, ReplicaExitedError
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import HELLO, get
from tests.flows.seen import record_of
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]


def test_the_revision_before_gets_the_traffic_within_five_seconds(
    deploy: Deploy, name: str, cli: CommandLine
) -> None:
    endpoint = deploy(env={"GREETING": "one"})
    deploy(env={"GREETING": "two"})
    took = []
    with Asking(endpoint.url) as asking, ThreadPoolExecutor() as pool:
        for revision in (1, 2):
            start = time.monotonic()
            asking.answers.clear()
            done = pool.submit(rollback_service, name, revision)
            wait_until(lambda wanted=str(revision): asking.answers[wanted] > 0, 60, interval=0.01)  # type: ignore[misc]
            took.append(time.monotonic() - start)
            assert done.result().revision == revision
    assert asking.failures == []
    assert min(took) < 5
    assert get(endpoint.url)["greeting"] == "two"
    history = {it["number"]: it for it in cli.ok("history", name, "--json").json}
    assert {number: it["outcome"] for number, it in history.items()} == {1: "superseded", 2: "active"}
    assert [len(history[number]["rollbacks"]) for number in (1, 2)] == [1, 1]
    assert cli.ok("history", name).out.count("rolled back to ") == 2
    with pytest.raises(NotFoundError, match="there is no revision 7; kept are: 1, 2"):
        rollback_service(name, to=7)


def test_a_stopped_service_gets_the_revision_back_that_was_stopped(
    deploy: Deploy, stop: Callable[[], None], name: str
) -> None:
    deploy(env={"GREETING": "one"})
    deploy(env={"GREETING": "two"})
    stop()

    endpoint = rollback_service(name)

    assert (endpoint.revision, get(endpoint.url)["greeting"]) == (2, "two")


def test_a_revision_that_fails_once_to_come_back_is_still_offered(
    deploy: Deploy, name: str, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    model = tmp_path / "model.bin"
    model.touch()
    deploy(commands=[f"[ -e {model} ] || exit 4", HELLO])
    endpoint = deploy(env={"GREETING": "two"})
    model.unlink()
    with pytest.raises(
        ReplicaExitedError, match=f"{name}@1 failed: .*exited with code 4.*{name}@2 serves on"
    ):
        rollback_service(name)
    assert get(endpoint.url)["greeting"] == "two"
    record = record_of(prefect_server, name)
    assert (record.active, record.previous_revision.number, record.revision(1).outcome) == (2, 1, "failed")

    model.touch()
    assert rollback_service(name).revision == 1
    assert record_of(prefect_server, name).revision(1).outcome == "active"
