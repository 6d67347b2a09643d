"""This machine: always there, never terminated."""

from __future__ import annotations

import functools
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from prefect_dstack.backends.base import Accelerator, GatewayHost, Instance, Offer, Report
from prefect_dstack.backends.matching import shortfalls
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import NoOfferError
from prefect_dstack.gateways.attachment import Attachment, is_in
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.hosts.identity import MachineIdentity, machine_identity
from prefect_dstack.hosts.local_machine import LocalMachine

if TYPE_CHECKING:
    from prefect_dstack.configurations import GatewayConfiguration
    from prefect_dstack.gateways.tunnels import TunnelHolder

__all__ = ["LocalBackend"]

GB = 1024**3


class LocalBackend:
    """Gives this machine to everybody; implements `Backend` and `HostsGateways`.

    Args:
        home: The home directory of prefect-dstack, on the disk that replicas will use.
        gateway_port: The port of services that name none, at a gateway on this machine.
    """

    name = "local"
    runtimes = frozenset({"docker", "process"})
    preferred = False

    def __init__(self, home: Path, gateway_port: int = 8080) -> None:
        self.home = home
        self.gateway_port = gateway_port

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """Offer this machine if it will do; see `Backend.offers`."""
        for key in ("regions", "availability_zones", "instance_types"):
            if getattr(requirements, key):
                raise NoOfferError(f"this machine has none of the {key} asked for; remove the key")
        if requirements.spot_policy == "spot":
            raise NoOfferError("this machine is not a spot instance; remove spot_policy")
        offer = self._machine_as_offer()
        missing = shortfalls(offer, requirements.resources)
        arch = requirements.resources.cpu.arch if requirements.resources.cpu else None
        if arch not in (None, _architecture()):
            missing.append(f"cpu: {arch} asked, {_architecture()} there")
        if missing:
            raise NoOfferError(f"this machine will not do: {'; '.join(missing)}")
        return [offer]

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements, report: Report
    ) -> Instance:
        """Hand out this machine; see `Backend.provision`."""
        return self.instances()[0]

    def instances(self) -> Sequence[Instance]:
        """List this machine; see `Backend.instances`."""
        return [
            Instance(
                backend=self.name,
                id=self.identity.id,
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

    @functools.cached_property
    def identity(self) -> MachineIdentity:
        """What tells this machine and home directory from others on the same Prefect API."""
        return machine_identity(self.home)

    def machine(self, instance: Instance) -> LocalMachine:
        """Reach this machine; see `Backend.machine`."""
        return LocalMachine(self.identity.id)

    def gateway_host(
        self, name: str, configuration: GatewayConfiguration, machine: Instance | None
    ) -> GatewayHost:
        """Return where a gateway of this machine runs; see `HostsGateways.gateway_host`."""
        network = configuration.network
        own = next((address for address in _own_addresses() if is_in(address, network)), None)
        tunnels = self.home / "tunnels" / name
        return GatewayHost(
            place=LocalPlace(name, self.home / "gateways" / name),
            attachment=Attachment("127.0.0.1", own, network if own is not None else None),
            public=False,
            port=self.gateway_port,
            tunnels=lambda: _local_tunnels(tunnels, name),
            may_hold_tunnels=tunnels.is_dir,
        )

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


def _local_tunnels(directory: Path, gateway: str) -> TunnelHolder:
    # It imports paramiko, which takes its time, and which services without hosts need not pay.
    from prefect_dstack.gateways.local_tunnels import LocalTunnels

    return LocalTunnels(directory, gateway)


def _own_addresses() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        yield from (entry.address.partition("%")[0] for entry in addresses)


def _architecture() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}.get(machine, machine)


@functools.cache
def _gpus() -> tuple[Accelerator, ...]:
    fields = "name,memory.total,compute_cap"
    outcome = LocalMachine().run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    return gpus_of(outcome.stdout.decode()) if outcome.exit_code == 0 else ()


def gpus_of(table: str) -> tuple[Accelerator, ...]:
    """Read what `nvidia-smi` says.

    Args:
        table: Lines of name, memory in MiB and compute capability; words where the driver does not know.

    Returns:
        The GPUs, those of one kind together.
    """
    rows = (tuple(cell.strip() for cell in line.rsplit(",", 2)) for line in table.splitlines())
    kinds = Counter(row for row in rows if len(row) == 3)
    return tuple(
        Accelerator(
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
