"""This machine: always there, never terminated."""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

from prefect_dstack.backends.base import Gpu, Instance, Offer, Report
from prefect_dstack.backends.matching import shortfalls
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.errors import NoOfferError
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.services.stamp import Stamp

__all__ = ["LocalBackend"]

GB = 1024**3


class LocalBackend:
    """Gives this machine to everybody; implements `Backend`.

    Args:
        home: A directory on the disk that replicas will use.
    """

    name = "local"

    def __init__(self, home: Path) -> None:
        self.home = home

    def offers(self, configuration: ServiceConfiguration) -> Sequence[Offer]:
        """Offer this machine if it is large enough; see `Backend.offers`."""
        offer = self._machine_as_offer()
        missing = shortfalls(offer, configuration.resources)
        if missing:
            raise NoOfferError(f"this machine is too small: {'; '.join(missing)}")
        return [offer]

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, configuration: ServiceConfiguration, report: Report
    ) -> Instance:
        """Hand out this machine; see `Backend.provision`."""
        return self.instances()[0]

    def instances(self) -> Sequence[Instance]:
        """List this machine; see `Backend.instances`."""
        return [
            Instance(
                backend=self.name,
                id=platform.node(),
                name="this machine",
                instance_type="local",
                address="127.0.0.1",
                private_address="127.0.0.1",
                price=0.0,
            )
        ]

    def stamp(self, instance: Instance) -> Stamp | None:
        """This machine is nobody's; see `Backend.stamp`."""
        return None

    def terminate(self, instance: Instance) -> None:
        """This machine stays; see `Backend.terminate`."""

    def machine(self, instance: Instance) -> LocalMachine:
        """Reach this machine; see `Backend.machine`."""
        return LocalMachine()

    def _machine_as_offer(self) -> Offer:
        self.home.mkdir(parents=True, exist_ok=True)
        return Offer(
            backend=self.name,
            instance_type="local",
            cpus=psutil.cpu_count() or 1,
            memory_gb=psutil.virtual_memory().total / GB,
            gpus=_gpus(),
            disk_gb=psutil.disk_usage(str(self.home)).free / GB,
            price=0.0,
            slots=10_000,
        )


@functools.cache
def _gpus() -> tuple[Gpu, ...]:
    outcome = LocalMachine().run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    )
    if outcome.exit_code != 0:
        return ()
    rows = (line.rpartition(",") for line in outcome.stdout.decode().splitlines())
    return tuple(Gpu(name=name.strip(), memory_gb=float(memory) / 1024) for name, _, memory in rows)
