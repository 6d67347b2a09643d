"""Prefect with PostgreSQL and two workers: every one of many deployments at once makes it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flows.conftest import EXAMPLES, get
from tests.flows.postgres import postgres
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = EXAMPLES.parent
PREFECT = Path(sys.executable).with_name("prefect")
SERVICES, ROUNDS, WORKERS = 20, 3, 2

STOP_ALL = """
import sys
from concurrent.futures import ThreadPoolExecutor
from prefect_dstack import stop_service

with ThreadPoolExecutor(4) as pool:
    list(pool.map(stop_service, sys.argv[1:]))
"""


@pytest.fixture
def server() -> Iterator[PrefectServer]:
    """A Prefect server on a PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-postgres-") as text:
        directory = Path(text)
        directory.chmod(0o755)
        for address in postgres(directory / "postgres"):
            server = PrefectServer(directory / "server", {"PREFECT_SERVER_DATABASE_CONNECTION_URL": address})
            server.start()
            yield server
            server.stop()


@pytest.fixture
def environment(server: PrefectServer, home: Home) -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": server.url, "PREFECT_WORKER_QUERY_SECONDS": "2"}


@contextlib.contextmanager
def workers(environment: Mapping[str, str], home: Home) -> Iterator[None]:
    """Two `process` workers of the pool that `prefect.yaml` names."""
    with contextlib.ExitStack() as stack:
        for number in range(WORKERS):
            log = stack.enter_context((home.path / f"worker-{number}.log").open("w"))
            command = [str(PREFECT), "worker", "start", "--pool", "dstack", "--limit", "5"]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def test_sixty_deployments_by_two_workers_all_make_it(
    server: PrefectServer, environment: Mapping[str, str], home: Home, name: str
) -> None:
    def prefect(*arguments: str) -> None:
        subprocess.run([PREFECT, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)

    names = [f"{name}-{number}" for number in range(SERVICES)]
    prefect("work-pool", "create", "dstack", "--type", "process")
    prefect("deploy", "--name", "deploy-service/default", "--no-prompt")
    deployment = httpx.get(f"{server.url}/deployments/name/deploy-service/default").json()["id"]
    ended: list[dict[str, Any]] = []
    try:
        with workers(environment, home):
            for turn in range(ROUNDS):
                created = [
                    server.ask(
                        f"/deployments/{deployment}/create_flow_run",
                        parameters={
                            "configuration": "examples/hello.dstack.yml",
                            "name": service,
                            "force": turn > 0,
                        },
                        state={"type": "SCHEDULED"},
                    )["id"]
                    for service in names
                ]
                wait_until(lambda ids=created: len(over(server, ids)) == SERVICES, 900, interval=2)  # type: ignore[misc]
                ended += over(server, created)
        messages = [run["state"]["message"] for run in ended if run["state"]["type"] != "COMPLETED"]
        assert messages == []
        assert len(ended) == SERVICES * ROUNDS
        revisions = Counter(
            get(f"http://127.0.0.1:{home.port + number}")["revision"] for number in range(SERVICES)
        )
        assert revisions == {str(ROUNDS): SERVICES}
    finally:
        subprocess.run([sys.executable, "-c", STOP_ALL, *names], env=environment, check=False)


def over(server: PrefectServer, ids: list[str]) -> list[dict[str, Any]]:
    """Those of these flow runs that have ended."""
    found = server.ask(
        "/flow_runs/filter",
        flow_runs={
            "id": {"any_": ids},
            "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}},
        },
    )
    assert isinstance(found, list)
    return found
