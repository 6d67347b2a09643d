"""A backend of another package: slots of this machine under another name, as a cloud would give machines.

All that it needs of prefect-dstack is in `prefect_dstack.backends.base` and the rooms below.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from prefect_dstack.backends.base import Backend, Instance, Offer, Report
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import CapacityError, NoOfferError
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.infrastructure.sources import BackendContext
from prefect_dstack.runtimes.base import Replica, Runtime
from prefect_dstack.runtimes.process import ProcessRuntime

SLOTS = 3
_lock = threading.Lock()


class TinyCloud:
    """Gives a directory as a machine, on which it runs processes itself."""

    name = "tinycloud"
    runtimes = frozenset({"process"})
    preferred = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        if requirements.spot_policy == "spot":
            raise NoOfferError("tinycloud has no spot machines; remove spot_policy")
        return [Offer(backend=self.name, instance_type="tiny", cpus=1, memory_gb=1, price=0.001)]

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements, report: Report
    ) -> Instance:
        with _lock:
            found = [instance for instance in self.instances() if self.stamp(instance) == stamp]
            if found:
                return found[0]
            if len(self.instances()) >= SLOTS:
                raise CapacityError(f"tinycloud: all {SLOTS} slots are taken")
            place = self.directory / stamp.name
            place.mkdir(parents=True)
            (place / "stamp.json").write_text(stamp.model_dump_json())
        report(f"tinycloud: {stamp.name}: created")
        return self._instance(place)

    def instances(self) -> Sequence[Instance]:
        return [self._instance(stamp.parent) for stamp in sorted(self.directory.glob("*/stamp.json"))]

    def stamp(self, instance: Instance) -> Stamp | None:
        return Stamp.model_validate(json.loads(Path(instance.id, "stamp.json").read_text()))

    def terminate(self, instance: Instance) -> None:
        shutil.rmtree(instance.id, ignore_errors=True)

    def machine(self, instance: Instance) -> LocalMachine:
        machine = LocalMachine()
        machine.name = instance.name
        return machine

    def runtime(self, name: str) -> Runtime:
        return TinyRuntime(self.directory / "replicas")

    def _instance(self, place: Path) -> Instance:
        return Instance(
            backend=self.name,
            id=str(place),
            name=f"tiny-{place.name}",
            instance_type="tiny",
            address="127.0.0.1",
            private_address="127.0.0.1",
            price=0.001,
        )


class TinyRuntime(ProcessRuntime):
    """Knows of each machine only the replica that it was made for."""

    def replicas(self, machine: Machine) -> Sequence[Replica]:
        return [replica for replica in super().replicas(machine) if machine.name == f"tiny-{replica.name}"]


def backend(context: BackendContext) -> Backend | None:
    """Return the backend; None where the home directory has no `tinycloud`."""
    directory = context.home / "tinycloud"
    return TinyCloud(directory) if directory.is_dir() else None
