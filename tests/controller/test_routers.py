"""A router learns which replicas there are, over its own API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefect_dstack.backends.base import Instance
from prefect_dstack.controller import routers
from prefect_dstack.controller.routers import Party, tell_router, untold
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import ReplicaNotReadyError
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Replica, ReplicaStatus
from tests.controller.model_gateway import Server

HERE = Instance(backend="local", id="here", name="here", address="127.0.0.1")

Start = Callable[[str], tuple[Server, FoundReplica]]


@pytest.fixture
def infrastructure() -> Infrastructure:
    return cast("Infrastructure", SimpleNamespace(machine=lambda instance: LocalMachine()))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a router or a worker; all of them end with the test."""
    servers: list[Server] = []

    def start(role: str) -> tuple[Server, FoundReplica]:
        server = Server(role)
        stamp = Stamp(service="hello", revision=1, replica=len(servers))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        replica = Replica(
            stamp=stamp, runtime="process", id=stamp.name, address="127.0.0.1", port=server.server_port
        )
        return server, FoundReplica(HERE, replica, ReplicaStatus(state="running"))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def known(server: Server) -> list[dict[str, Any]]:
    return sorted(server.workers.values(), key=lambda worker: worker["url"])


def test_its_workers_become_those_that_there_are(start: Start, infrastructure: Infrastructure) -> None:
    (server, router), (_, first), (_, second) = start("router"), start("worker"), start("worker")

    lines = tell_router(infrastructure, router, [first])
    assert lines == [f"sends requests to hello-1-1 at http://127.0.0.1:{first.replica.port}"]
    assert known(server) == [{"url": f"http://127.0.0.1:{first.replica.port}", "worker_type": "regular"}]

    tell_router(infrastructure, router, [second])
    assert known(server) == [{"url": f"http://127.0.0.1:{second.replica.port}", "worker_type": "regular"}]
    assert tell_router(infrastructure, router, [second]) == []


def test_workers_say_themselves_what_they_are_for(start: Start, infrastructure: Infrastructure) -> None:
    (server, router), (_, prefill), (_, decode) = start("router"), start("prefill"), start("decode")

    tell_router(infrastructure, router, [prefill, decode])

    found = {worker["worker_type"]: worker.get("bootstrap_port") for worker in known(server)}
    assert found == {"prefill": 8998, "decode": None}


def test_one_that_has_started_again_is_found(start: Start, infrastructure: Infrastructure) -> None:
    (server, router), (_, worker) = start("router"), start("worker")
    party = Party((router,), (worker,))
    tell_router(infrastructure, router, [worker])
    assert untold(infrastructure, party) == []

    server.workers.clear()

    assert untold(infrastructure, party) == ["hello-1-0"]


def test_one_that_does_not_take_its_workers_is_not_ready(
    start: Start, infrastructure: Infrastructure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routers, "PATIENCE", 0.5)
    (_, router), (_, worker) = start("router"), start("unwell")

    with pytest.raises(ReplicaNotReadyError, match="hello-1-0: does not take as workers http"):
        tell_router(infrastructure, router, [worker])


def test_what_does_not_speak_its_api_is_not_ready(start: Start, infrastructure: Infrastructure) -> None:
    _, worker = start("worker")

    with pytest.raises(ReplicaNotReadyError, match="hello-1-0: does not list its workers at /workers"):
        tell_router(infrastructure, worker, [])
