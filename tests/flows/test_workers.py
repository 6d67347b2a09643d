"""Workers that share nothing but a Prefect API: each goes on with what another has left in the middle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dstack import create_gateway, delete_gateway, delete_service
from prefect_dstack.flows.fleets import apply_fleet, delete_fleet
from prefect_dstack.store.records import load_record
from tests.flows.lab import FLEET, GATEWAY, Lab, Requests
from tests.flows.test_compose import Stack, redis, stack
from tests.flows.test_documented import BIN, ROOT
from tests.polling import wait_until
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image

__all__ = ["redis", "stack"]

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(1800)]

WORKER = ["worker", "start", "--pool", "dstack", "--type", "process"]


class ContainerWorker:
    """A worker in a container, whose files, processes and home are its own.

    Args:
        engine: Where it runs.
        stack: What it belongs to.
        keys: The directory of the SSH keys that fleets name.
    """

    def __init__(self, engine: LocalEngine, stack: Stack, keys: Path) -> None:
        self._engine, self._stack, self._keys = engine, stack, keys
        self._container: Any = None

    def start(self) -> None:
        """Start it."""
        load_image(self._engine, "python")
        # The image has the loader alone; programs and their libraries are this machine's.
        shown = [ROOT, sys.base_prefix, "/lib/x86_64-linux-gnu", self._keys]
        with self._engine.docker() as client:
            self._container = client.containers.run(
                "testbed/python:1",
                [str(BIN / "prefect"), *WORKER],
                detach=True,
                network_mode="host",
                working_dir=str(ROOT),
                environment={
                    "HOME": "/root",
                    "PATH": f"{BIN}:/usr/local/bin:/bin",
                    "PREFECT_API_URL": self._stack.server.url,
                    "PREFECT_WORKER_QUERY_SECONDS": "2",
                },
                volumes=[f"{path}:{path}:ro" for path in shown],
            )

    def kill(self) -> None:
        """Kill it, and all that it has begun."""
        if self._container is not None:
            with self._engine.docker() as client:
                client.containers.get(self._container.id).remove(force=True)
            self._container = None


@pytest.fixture
def published(stack: Stack, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a gateway on a host, before a fleet of hosts; the server knows our deployments."""
    monkeypatch.setenv("PREFECT_API_URL", stack.server.url)
    for command in (
        ["work-pool", "create", "dstack", "--type", "process"],
        ["--no-prompt", "deploy", "--all"],
    ):
        subprocess.run([BIN / "prefect", *command], cwd=ROOT, check=True, capture_output=True, timeout=400)
    with temporary_settings({PREFECT_API_URL: stack.server.url}):
        apply_fleet(lab.fleet())
        create_gateway(lab.gateway())
        yield lab.edge.address
        delete_gateway(GATEWAY)
        delete_fleet(FLEET)


@pytest.fixture
def worker_in_container(docker_engine: LocalEngine, stack: Stack, lab: Lab) -> Iterator[ContainerWorker]:
    """A worker in a container, not started yet."""
    worker = ContainerWorker(docker_engine, stack, Path(lab.edge.identity_file).parent)
    yield worker
    worker.kill()


def test_each_is_lost_in_the_middle_and_another_goes_on(
    stack: Stack, published: str, lab: Lab, worker_in_container: ContainerWorker, tmp_path: Path, name: str
) -> None:
    before = lab.traces()
    service = lab.service(name, replicas=2, fleets=[FLEET], gateway=GATEWAY)

    def start(worker: str) -> None:
        if worker == "container":
            worker_in_container.start()
        else:
            stack.start(worker, PREFECT_DSTACK_HOME=str(tmp_path / worker))

    def kill(worker: str) -> None:
        if worker == "container":
            worker_in_container.kill()
        else:
            stack.kill(worker)

    def lose(worker: str, flow: str, done: Callable[[], bool], **parameters: Any) -> None:
        """Start a worker, and kill it when what it was asked for is half done."""
        start(worker)
        stack.begin(flow, **parameters)
        wait_until(done, 200, f"{worker} is in the middle of {flow}", interval=0.05)
        kill(worker)
        assert load_record(name).deploying is not None

    def has(replica: str) -> Callable[[], bool]:
        """Whether there is a container of a replica."""
        listed = ["docker", "ps", "--all", "--format", "{{.Names}}"]
        return lambda: any(replica in host.check(listed) for host in lab.hosts)

    start("worker-1")
    stack.run("deploy-service", configuration=service)
    kill("worker-1")
    with Requests(published) as requests:
        lose("worker-2", "deploy-service", has(f"{name}-2-0"), configuration=service, force=True)

        start("container")
        stack.run("deploy-service", configuration=service, force=True)
        assert load_record(name).active == 3
        kill("container")
        lose("container", "scale-service", has(f"{name}-3-2"), name=name, replicas=4)

        start("worker-1")
        stack.run("scale-service", name=name, replicas=3)
        requests.wait_for_more()
        stack.run("deploy-service", ends="Suspended", configuration=service, force=True, approval=True)
        kill("worker-1")
        start("container")
        stack.run("approve-service", name=name)
        assert load_record(name).active == 4
        kill("container")

        lose("worker-1", "rollback-service", has(f"{name}-3-0"), name=name)
        start("worker-2")
        stack.run("rollback-service", name=name)
        serving = load_record(name)
        assert (serving.deploying, len(serving.wanted_names)) == (None, 3)
        requests.wait_for_more()
    assert requests.failures == []
    stack.run("stop-service", name=name)
    stack.run("reconcile-services")
    kill("worker-2")
    delete_service(name)
    assert lab.differences(before, lab.traces()) == {}
