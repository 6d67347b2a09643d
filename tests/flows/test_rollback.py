"""Going back: at once, to any revision that is kept, and told in the history."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_dstack import Endpoint, rollback_service
from prefect_dstack.errors import NotFoundError
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.polling import wait_until

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
