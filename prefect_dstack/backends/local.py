"""This machine: always there, never terminated."""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from prefect_dstack.backends.base import Accelerator, GatewayHost, Instance, Offer, Report
from prefect_dstack.backends.claims import Claim, claims_on, held_claims, hold, let_go
from prefect_dstack.backends.gpus import GPU_SURVEY, GpuDevice, grouped, picked, read_gpus
from prefect_dstack.backends.matching import gpus_given, refusals
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import HostNotReadyError, NoOfferError
from prefect_dstack.gateways.attachment import Attachment, is_in
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.hosts.identity import MachineIdentity, machine_identity
from prefect_dstack.hosts.local_machine import LocalMachine

if TYPE_CHECKING:
    from prefect_dstack.configurations import GatewayConfiguration
    from prefect_dstack.gateways.tunnels import TunnelHolder

__all__ = ["LocalBackend"]

GB = 1024**3

# Replicas that are placed at the same time choose their GPUs one after the other.
_lock = threading.Lock()


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
        offer = self._machine_as_offer()
        reasons = refusals(requirements, offer)
        if reasons:
            raise NoOfferError(f"this machine will not do: {'; '.join(map(str, reasons))}")
        return [offer]

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements, report: Report
    ) -> Instance:
        """Return this machine, and for a container those GPUs that the fewest others use.

        See `Backend.provision`. A process sees all GPUs.
        """
        (instance,) = self.instances()
        given = gpus_given(requirements, self._machine_as_offer())
        if not given or requirements.runtime != "docker":
            return instance
        devices = self._choose(given, stamp)
        return instance.model_copy(update={"gpu_devices": devices, "details": {"replica": stamp.name}})

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
        """Keep this machine, but forget the GPUs that were chosen for a container that will not come."""
        replica = instance.details.get("replica")
        if isinstance(replica, str):
            let_go(instance.name, replica)

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

    def _choose(self, given: Sequence[Accelerator], stamp: Stamp) -> tuple[str, ...]:
        with _lock:
            claims = held_claims(LocalMachine.name)
            # Without an engine, the start of the container says so.
            with contextlib.suppress(HostNotReadyError):
                claims = claims_on(LocalMachine().docker(), LocalMachine.name)
            for claim in claims:
                if claim.stamp.name == stamp.name and claim.gpu_devices:
                    return claim.gpu_devices
            users = Counter(device for claim in claims for device in claim.gpu_devices)
            devices = tuple(gpu.id for gpu in picked(sorted(_gpus(), key=lambda gpu: users[gpu.id]), given))
            hold(LocalMachine.name, Claim(stamp=stamp, gpu_devices=devices))
            return devices

    def _machine_as_offer(self) -> Offer:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Offer(
            backend=self.name,
            instance_type="local",
            architecture=_architecture(),
            cpus=psutil.cpu_count() or 1,
            memory_gb=psutil.virtual_memory().total / GB,
            gpus=grouped(_gpus()),
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
def _gpus() -> tuple[GpuDevice, ...]:
    outcome = LocalMachine().run(["sh", "-c", GPU_SURVEY])
    rows = [line for line in outcome.stdout.decode(errors="replace").splitlines() if line.startswith("gpu ")]
    return read_gpus((row.removeprefix("gpu ") for row in rows), psutil.virtual_memory().total / GB)
