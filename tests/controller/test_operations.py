"""A replica whose GPUs another deployment took in the meantime gets others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack.backends.base import Instance
from prefect_dstack.controller import operations
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import CapacityError
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.runtimes.base import Launch, Replica

STAMP = Stamp(service="hello", revision=1, replica=0)
SPEC = WorkloadSpec.model_validate({"requirements": {}, "port": 80, "image": "x", "directory": "."})


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

    def backend(self, name: str, whose: str) -> World:
        return self

    def machine(self, instance: Instance) -> LocalMachine:
        return LocalMachine()

    def runtime(self, instance: Instance, name: str) -> Runtime:
        return Runtime(self.taken)

    def offers(self, requirements: Any) -> list[Any]:
        return []

    def provision(self, *_: Any) -> Instance:
        return instance(self.left.pop(0))


class Runtime:
    """Refuses what is somebody else's."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def launch(self, machine: Any, launch: Launch, report: Callable[[str], None]) -> Replica:
        if self.taken.intersection(launch.gpu_devices):
            raise CapacityError(f"gpu-1: somebody has just taken the GPU {launch.gpu_devices[0]}")
        return Replica(
            stamp=STAMP, runtime="docker", id=launch.gpu_devices[0], address="127.0.0.1", port=20000
        )


def launch(world: Any) -> Replica:
    wanted = Launch(stamp=STAMP, spec=SPEC)
    return operations.launch_replica(world, world.provision(), wanted, logging.getLogger("test"))


def test_it_gets_others() -> None:
    world = World({"GPU-a", "GPU-b"})
    assert launch(world).id == "GPU-c"
    assert world.let_go == ["GPU-a", "GPU-b"]


def test_it_is_given_up_when_that_goes_on() -> None:
    with pytest.raises(CapacityError, match="GPU-d"):
        launch(World({"GPU-a", "GPU-b", "GPU-c", "GPU-d"}))
