"""Many services deployed for the first time at once: each gets a port of its own, and serves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task

from prefect_dstack import Endpoint, deploy_service, stop_service
from prefect_dstack.errors import ConflictError, PrefectDstackError
from prefect_dstack.store.records import find_record
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

COUNT = 20

Configuration = Mapping[str, Any]


@pytest.fixture
def services(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[list[dict[str, Any]]]:
    """Twenty services, which are stopped at the end."""
    configurations = [hello(f"{name}-{number}") for number in range(COUNT)]
    yield configurations

    def stop(service: str) -> None:
        record = find_record(service)
        if record is not None and record.active is not None:
            stop_service(service)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(stop, [it["name"] for it in configurations]))


def outcomes(deployments: list[Callable[[], Endpoint]]) -> tuple[list[Endpoint], list[str]]:
    """Do them all at once; what serves, and why the others do not."""

    def outcome(deployment: Callable[[], Endpoint]) -> Endpoint | str:
        try:
            return deployment()
        except PrefectDstackError as error:
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(len(deployments)) as pool:
        found = list(pool.map(outcome, deployments))
    return (
        [it for it in found if isinstance(it, Endpoint)],
        [it for it in found if isinstance(it, str)],
    )


def check(endpoints: list[Endpoint]) -> None:
    """Each answers by itself at a port of its own."""
    assert len(endpoints) == COUNT
    assert len({it.url for it in endpoints}) == COUNT
    assert len({get(it.url)["pid"] for it in endpoints}) == COUNT


def test_in_threads_of_one_process(services: list[dict[str, Any]]) -> None:
    served, problems = outcomes([lambda it=it: deploy_service(it) for it in services])  # type: ignore[misc]

    assert problems == []
    check(served)


def test_in_one_flow_that_maps_over_them(services: list[dict[str, Any]]) -> None:
    @task
    def put(configuration: dict[str, Any]) -> Endpoint:
        return deploy_service(configuration)

    @flow
    def put_all() -> list[Endpoint]:
        return put.map(services).result()

    check(put_all())


def test_in_two_processes(services: list[dict[str, Any]], tmp_path: Path) -> None:
    script = tmp_path / "deploy.py"
    script.write_text(PROGRAM)
    processes = []
    for half in (services[::2], services[1::2]):
        processes.append(
            subprocess.Popen(
                [sys.executable, script, json.dumps(half)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    served = []
    for process in processes:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-4000:]
        served += [Endpoint.model_validate_json(line) for line in out.splitlines()]
    check(served)


PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from prefect_dstack import deploy_service

with ThreadPoolExecutor(10) as pool:
    for endpoint in pool.map(deploy_service, json.loads(sys.argv[1])):
        print(endpoint.model_dump_json())
"""


@pytest.mark.parametrize(
    "keys",
    [
        {"port": "{port}:8000"},
        {"domain": "same.example"},
        {"domain": "same.example", "path_prefix": "/same"},
        {"path_prefix": "/same", "port": "{port}:8000"},
    ],
    ids=["port", "host", "host and path", "path"],
)
def test_that_ask_for_the_same_one_serves_and_the_other_is_refused_in_a_line(
    services: list[dict[str, Any]], home: Home, keys: Configuration
) -> None:
    wanted = {key: value.format(port=home.port + 3) for key, value in keys.items()}
    first, second = ({**it, **wanted} for it in services[:2])

    served, problems = outcomes([lambda: deploy_service(first), lambda: deploy_service(second)])

    (endpoint,) = served
    (problem,) = problems
    assert problem.startswith(ConflictError.__name__)
    assert f"belongs to service '{endpoint.service}'" in problem
    assert len(problem.splitlines()) == 1
    (lost,) = {first["name"], second["name"]} - {endpoint.service}
    assert not list(home.state.glob(f"replicas/{lost}*"))
