"""The output of a service, followed over its revisions."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from threading import Thread

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.services.logs import read_logs
from tests.flows.conftest import get
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


def test_it_goes_on_with_each_new_revision_until_the_service_is_stopped(
    deploy: Callable[..., Endpoint], stop: Callable[[], None], name: str, prefect_server: PrefectServer
) -> None:
    endpoint = deploy()
    lines: Queue[str | None] = Queue()

    def follow() -> None:
        for line in read_logs(name, follow=True):
            lines.put(line)
        lines.put(None)

    def wait_for(words: str) -> None:
        while words not in (line := lines.get(timeout=60) or pytest.fail("it has ended")):
            assert line is not None

    reader = Thread(target=follow)
    reader.start()
    wait_for("serving on")
    for number in (2, 3):
        deploy(env={"GREETING": str(number)})
        wait_for("serving on")
        get(f"{endpoint.url}/asked-of-{number}")
        wait_for(f"GET /asked-of-{number}")
    with pytest.raises(PrefectDstackError):
        deploy(commands=["echo the fourth; exit 1"])
    get(f"{endpoint.url}/asked-after-the-failure")
    wait_for("GET /asked-after-the-failure")
    stop()
    reader.join(30)
    assert not reader.is_alive()
    while lines.get(timeout=10) is not None:
        pass
