"""A replica whose GPUs another deployment took in the meantime gets others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.backends.base import Instance
from prefect_dstack.configurations import Environment, ServiceConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import CapacityError
from prefect_dstack.runtimes.base import Launch, Replica
from prefect_dstack.tasks import connections, replicas

STAMP = Stamp(service="hello", revision=1, replica=0)
CONFIGURATION = ServiceConfiguration.model_validate({"type": "service", "port": 80, "image": "x"})


def instance(gpu: str) -> Instance:
    return Instance(
        backend="ssh",
        id="lab/gpu-1",
        name="gpu-1",
        instance_type="gpu-1",
        address="192.0.2.1",
        gpu_devices=(gpu,),
    )


class World:
    """A backend and a runtime, in which some GPUs are already somebody else's."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.left = ["GPU-a", "GPU-b", "GPU-c", "GPU-d", "GPU-e"]
        self.let_go: list[str] = []

    def terminate(self, instance: Instance) -> None:
        self.let_go += instance.gpu_devices

    def offers(self, configuration: ServiceConfiguration) -> list[Any]:
        return []

    def provision(self, *_: Any) -> Instance:
        return instance(self.left.pop(0))

    def launch(self, machine: Any, launch: Launch, report: Callable[[str], None]) -> Replica:
        if self.taken.intersection(launch.gpu_devices):
            raise CapacityError(f"gpu-1: somebody has just taken the GPU {launch.gpu_devices[0]}")
        return Replica(
            stamp=STAMP, runtime="docker", id=launch.gpu_devices[0], address="127.0.0.1", port=20000
        )


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], Replica]:
    def launch(world: World) -> Replica:
        monkeypatch.setattr(replicas, "get_run_logger", lambda: logging.getLogger("test"))
        monkeypatch.setattr(connections, "backends", lambda: {"ssh": world})
        monkeypatch.setattr(connections, "runtime_for", lambda configuration: world)
        monkeypatch.setattr(connections, "machine", lambda instance: None)
        wanted = Launch(stamp=STAMP, configuration=CONFIGURATION, environment=Environment(), directory=Path())
        return replicas.launch_replica.fn(world.provision(), wanted)

    return launch


def test_it_gets_others(launch: Callable[[World], Replica]) -> None:
    world = World({"GPU-a", "GPU-b"})
    assert launch(world).id == "GPU-c"
    assert world.let_go == ["GPU-a", "GPU-b"]


def test_it_is_given_up_when_that_goes_on(launch: Callable[[World], Replica]) -> None:
    with pytest.raises(CapacityError, match="GPU-d"):
        launch(World({"GPU-a", "GPU-b", "GPU-c", "GPU-d"}))
