"""This machine: always there, never terminated."""

from __future__ import annotations

import functools
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from prefect_dstack.backends.base import Gpu, Instance, Offer, Report
from prefect_dstack.backends.matching import shortfalls
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import NoOfferError
from prefect_dstack.hosts.local_machine import LocalMachine

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
        """Offer this machine if it will do; see `Backend.offers`."""
        for key in ("regions", "availability_zones", "instance_types"):
            if getattr(configuration, key):
                raise NoOfferError(f"this machine has none of the {key} asked for; remove the key")
        if configuration.spot_policy == "spot":
            raise NoOfferError("this machine is not a spot instance; remove spot_policy")
        offer = self._machine_as_offer()
        missing = shortfalls(offer, configuration.resources)
        arch = configuration.resources.cpu.arch if configuration.resources.cpu else None
        if arch not in (None, _architecture()):
            missing.append(f"cpu: {arch} asked, {_architecture()} there")
        if missing:
            raise NoOfferError(f"this machine will not do: {'; '.join(missing)}")
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


def _architecture() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}.get(machine, machine)


@functools.cache
def _gpus() -> tuple[Gpu, ...]:
    fields = "name,memory.total,compute_cap"
    outcome = LocalMachine().run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    return gpus_of(outcome.stdout.decode()) if outcome.exit_code == 0 else ()


def gpus_of(table: str) -> tuple[Gpu, ...]:
    """Read what `nvidia-smi` says.

    Args:
        table: Lines of name, memory in MiB and compute capability; words where the driver does not know.

    Returns:
        The GPUs, those of one kind together.
    """
    rows = (tuple(cell.strip() for cell in line.rsplit(",", 2)) for line in table.splitlines())
    kinds = Counter(row for row in rows if len(row) == 3)
    return tuple(
        Gpu(
            name=name,
            # A GPU without memory of its own uses the machine's.
            memory_gb=float(memory) / 1024 if memory.isdecimal() else psutil.virtual_memory().total / GB,
            count=count,
            compute_capability=_capability(capability),
        )
        for (name, memory, capability), count in kinds.items()
    )


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
