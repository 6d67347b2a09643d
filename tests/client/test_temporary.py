"""A service for the time of a block is gone afterwards, whatever happened there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

import prefect_dstack
from prefect_dstack import get_service, service, stop_service
from prefect_dstack.errors import ConflictError, NotFoundError, PrefectDstackError
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stopped")]

BLOCK = """
import asyncio, sys
from prefect import flow
from prefect_dstack import service

@flow
def job():
    with service({service!r}) as endpoint:
        print(endpoint.url, flush=True)
        sys.stdin.readline()

job()
"""


@pytest.fixture
def stopped(home: Home, prefect_server: PrefectServer, name: str) -> Iterator[None]:
    """Nothing of the service is left, not even after a test that failed."""
    yield
    with contextlib.suppress(NotFoundError):
        stop_service(name)


def state_of(name: str) -> str:
    return get_service(name).state


def test_a_service_serves_within_its_block_and_no_longer(name: str) -> None:
    with service(hello(name)) as endpoint:
        assert get(endpoint.url)["revision"] == "1"
    assert state_of(name) == "stopped"


def test_a_service_is_stopped_when_its_block_fails(name: str) -> None:
    @flow
    def job() -> None:
        with service(hello("another"), name=name) as endpoint:
            assert endpoint.service == name
            raise RuntimeError("no rows")

    with pytest.raises(RuntimeError, match="no rows"):
        job()
    assert state_of(name) == "stopped"


def test_a_service_is_stopped_when_an_async_block_is_cancelled(name: str) -> None:
    entered = asyncio.Event()

    async def job() -> None:
        async with service(hello(name)) as endpoint:
            assert get(endpoint.url)["revision"] == "1"
            entered.set()
            await asyncio.Event().wait()

    async def main() -> None:
        running = asyncio.create_task(job())
        await entered.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert state_of(name) == "stopped"


def test_a_service_is_stopped_when_its_program_is_interrupted(name: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(BLOCK.format(service=hello(name)))
    program = subprocess.Popen(
        [sys.executable, "job.py"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ),
    )
    with program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline().startswith("http://")
            program.send_signal(signal.SIGINT)
            program.wait(60)
        finally:
            program.kill()
    assert state_of(name) == "stopped"


def test_one_that_fails_to_start_leaves_nothing(name: str) -> None:
    with pytest.raises(PrefectDstackError, match="exited"), service(hello(name, commands=["exit 3"])):
        pytest.fail("the block was entered")
    assert state_of(name) == "failed"


def test_one_that_serves_already_is_not_touched(name: str) -> None:
    endpoint = prefect_dstack.deploy_service(hello(name))

    async def asynchronous() -> Any:
        async with service(hello(name)):
            pytest.fail("the block was entered")

    with pytest.raises(ConflictError, match="would be stopped at the end"), service(hello(name)):
        pytest.fail("the block was entered")
    with pytest.raises(ConflictError, match="give another name"):
        asyncio.run(asynchronous())
    assert get(endpoint.url)["revision"] == "1"


def test_one_that_somebody_has_stopped_and_deleted_is_no_error(name: str) -> None:
    with service(hello(name)):
        stop_service(name)
        prefect_dstack.delete_service(name)
    wait_until(lambda: name not in [it.name for it in prefect_dstack.list_services()], 10, "it is gone")
