"""What a backend is: something that offers machines, gives them and takes them back.

Every backend implements `Backend`. What only some can do is a protocol of its own below it, which callers
look for with `isinstance`: nothing asks for a backend by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.gateways.attachment import Attachment
from prefect_dstack.gateways.place import Place
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.runtimes.base import Runtime

if TYPE_CHECKING:
    from prefect_dstack.configurations import GatewayConfiguration
    from prefect_dstack.gateways.tunnels import TunnelHolder

__all__ = [
    "Accelerator",
    "AnnouncesInterruptions",
    "Backend",
    "CheckResult",
    "ChecksItself",
    "CleansUp",
    "CreatedGateway",
    "EditsDns",
    "GatewayHost",
    "GatewayMachines",
    "HostsGateways",
    "Instance",
    "Offer",
    "ProvidesGatewayMachines",
    "Report",
    "RunsWorkloads",
    "TxtRecords",
]

Report = Callable[[str], None]
"""Takes one line of progress, for a log or a terminal."""


class Accelerator(BaseModel):
    """One kind of accelerator in a machine."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The model, for example `A100`.")
    memory_gb: float = Field(description="Memory of one of them, in GB.")
    vendor: str = Field(default="nvidia", description="`nvidia`, `amd`, ...")
    count: int = Field(default=1, description="How many of them.")
    compute_capability: tuple[int, int] | None = Field(
        default=None, description="What its CUDA cores can do, such as 8.0; None: unknown."
    )


class Offer(BaseModel):
    """A machine, or a share of one, that a backend could give."""

    model_config = ConfigDict(frozen=True)

    backend: str = Field(description="The backend's name.")
    instance_type: str = Field(
        description="The kind of machine; for a machine that we hold already, its name."
    )
    region: str = Field(default="", description="Where it is; empty where a backend has no regions.")
    zones: tuple[str, ...] = Field(default=(), description="The zones of the region that offer it.")
    fleet: str = Field(default="", description="The fleet that a held machine is in; empty: none.")
    network: str = Field(
        default="",
        description="The private network on which it reaches others; empty: none, or nobody asked for it.",
    )
    instances: tuple[str, ...] = Field(
        default=(), description="What a held machine of a fleet is called; empty: it is in none."
    )
    architecture: str | None = Field(
        default=None, description="`x86` or `arm`, else as its kernel calls it; None: unknown."
    )
    cpus: float = Field(description="Virtual processors; of a held machine, those still free.")
    memory_gb: float = Field(description="Memory in GB; of a held machine, what is still free.")
    gpus: tuple[Accelerator, ...] = Field(
        default=(), description="Accelerators; of a held machine, those still free."
    )
    disk_gb: float | None = Field(default=None, description="Disk in GB; None: as much as is asked for.")
    price: float | None = Field(default=None, description="US dollars an hour; None: unknown.")
    spot: bool = Field(default=False, description="Whether the provider may take it back at any time.")
    slots: int | None = Field(
        default=None, description="How many replicas fit; None: one, on a machine of its own."
    )


class Instance(BaseModel):
    """A machine that we hold."""

    model_config = ConfigDict(frozen=True)

    backend: str = Field(description="The backend's name.")
    id: str = Field(description="What the backend calls it.")
    name: str = Field(description="What people call it.")
    region: str = Field(default="", description="Where it is.")
    instance_type: str = Field(default="", description="The kind of machine.")
    address: str = Field(default="", description="Where we reach it.")
    private_address: str | None = Field(default=None, description="Its address on a private network.")
    network: str | None = Field(
        default=None, description="That private network: machines in one reach each other."
    )
    price: float | None = Field(default=None, description="US dollars an hour; None: unknown.")
    spot: bool = Field(default=False, description="Whether the provider may take it back at any time.")
    gpu_devices: tuple[str, ...] = Field(
        default=(), description="The accelerators set aside for the replica."
    )
    exclusive: bool = Field(
        default=False, description="Whether nothing else that needs ports of its own can be placed on it."
    )
    details: dict[str, JsonValue] = Field(
        default_factory=dict, description="What the backend needs to find and reach it again; never a secret."
    )


class Backend(Protocol):
    """Where machines come from. A new backend is one module with these methods."""

    @property
    def name(self) -> str:
        """What configurations and records call it."""
        ...

    @property
    def runtimes(self) -> frozenset[str]:
        """The runtimes whose workloads it takes: `docker` for containers, `process` for commands alone."""
        ...

    @property
    def preferred(self) -> bool:
        """Whether workloads that name no backend go here rather than to one that is not preferred."""
        ...

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """Return the offers for one replica.

        Args:
            requirements: Say which resources, prices, regions and kinds are acceptable;
                `backends.matching.refusals` judges an offer by all of them.

        Returns:
            Acceptable offers, the best first: cheapest, then emptiest.

        Raises:
            NoOfferError: If nothing is acceptable; says why, and what comes closest.
            ProvisioningError: If the backend cannot be asked.
        """
        ...

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements, report: Report
    ) -> Instance:
        """Get a machine for one replica. Run twice with one stamp, it finds the first result.

        Args:
            offers: This backend's offers to try, in order.
            stamp: For whom; written in the call that creates the machine.
            requirements: As for `offers`.
            report: Told of each attempt.

        Returns:
            A machine that answers.

        Raises:
            CapacityError: If none of the offers can be had for now.
            ProvisioningError: If anything else fails; then nothing is left of the attempt.
        """
        ...

    def instances(self) -> Sequence[Instance]:
        """List every machine of ours that the backend knows, whether it answers or not.

        Returns:
            The machines: of a fleet, its hosts; of a cloud, what carries a stamp. For a region that cannot
            be asked, one that carries none and that `machine` does not reach.
        """
        ...

    def stamp(self, instance: Instance) -> Stamp | None:
        """Read for whom a machine was created.

        Args:
            instance: One of `instances`.

        Returns:
            Its stamp; None if it is shared by many services, as the hosts of a fleet are.
        """
        ...

    def terminate(self, instance: Instance) -> None:
        """Release a machine, and verify that it is gone; where machines are shared, do nothing.

        Args:
            instance: The machine.

        Raises:
            ProvisioningError: If the backend does not confirm it.
        """
        ...

    def machine(self, instance: Instance) -> Machine:
        """Reach a machine.

        Args:
            instance: The machine.

        Returns:
            The machine, connected on first use.

        Raises:
            HostError: If it cannot be reached.
            ProvisioningError: If it stands for a region that cannot be asked.
        """
        ...


@runtime_checkable
class RunsWorkloads(Protocol):
    """A backend that starts replicas itself, as one that schedules containers does."""

    def runtime(self, name: str) -> Runtime:
        """Return what starts replicas on its instances.

        Args:
            name: The runtime that the workload asks for: `docker` or `process`.
        """
        ...


@runtime_checkable
class CleansUp(Protocol):
    """A backend whose machines leave something behind, such as security groups."""

    def cleanup(self) -> None:
        """Remove what no machine of ours needs any more.

        Raises:
            ProvisioningError: If something cannot be removed.
        """
        ...


@runtime_checkable
class AnnouncesInterruptions(Protocol):
    """A backend whose provider takes machines back, and says so beforehand."""

    def interrupted(self) -> Sequence[Instance]:
        """List the machines of replicas that the provider is about to take back.

        Raises:
            ProvisioningError: If the provider cannot be asked.
        """
        ...


class TxtRecords(Protocol):
    """The TXT records of DNS zones."""

    def add_txt(self, name: str, values: Sequence[str]) -> None:
        """Set the TXT records of a name; all name servers answer with them when this returns."""
        ...

    def remove_txt(self, name: str) -> None:
        """Remove the TXT records of a name; no error if there are none."""
        ...


@runtime_checkable
class EditsDns(Protocol):
    """A backend that can change DNS records."""

    def txt_records(self) -> TxtRecords:
        """Return the TXT records that it can change."""
        ...


class CheckResult(BaseModel):
    """The result of one check of a backend's access."""

    model_config = ConfigDict(frozen=True)

    subject: str = Field(description="What was checked.")
    passed: bool = Field(description="Whether it is as it must be.")
    detail: str = Field(description="What was found.")
    resolution: str = Field(default="", description="What to do about it; empty if nothing.")


@runtime_checkable
class ChecksItself(Protocol):
    """A backend that can check its own access without changing anything."""

    def checks(self) -> Iterator[CheckResult]:
        """Yield the result of each check."""
        ...


@dataclass(frozen=True)
class GatewayHost:
    """Where a gateway runs, and how it gets from there to replicas.

    Attributes:
        place: Its files and its HAProxy.
        attachment: Where its machine is in networks.
        public: Whether others than its own machine reach it.
        port: The port of services that name none, unless the gateway's configuration names another.
        tunnels: Returns what holds its tunnels; importing that takes time.
        may_hold_tunnels: Whether it may hold any.
    """

    place: Place
    attachment: Attachment
    public: bool
    port: int
    tunnels: Callable[[], TunnelHolder]
    may_hold_tunnels: Callable[[], bool]


@runtime_checkable
class HostsGateways(Protocol):
    """A backend on whose machines gateways run."""

    def gateway_host(
        self, name: str, configuration: GatewayConfiguration, machine: Instance | None
    ) -> GatewayHost:
        """Return where a gateway runs.

        Args:
            name: The gateway.
            configuration: As it was written.
            machine: The machine that was created for it; None where none is created.

        Raises:
            GatewayError: If its machine is not known.
        """
        ...


class CreatedGateway(BaseModel):
    """A gateway's machine, as its backend created it."""

    model_config = ConfigDict(frozen=True)

    instance: Instance = Field(description="The machine; its address is the one that stays.")
    missing_records: tuple[str, ...] = Field(
        default=(), description="DNS records that somebody else must create, as a zone file has them."
    )


class GatewayMachines(Protocol):
    """The machines that a cloud creates for gateways."""

    def offer(self, configuration: GatewayConfiguration) -> Offer:
        """Return the machine that a gateway would get, and its price."""
        ...

    def create(self, name: str, configuration: GatewayConfiguration, report: Report) -> CreatedGateway:
        """Create a gateway's machine. Run twice with one name, it finds the first result."""
        ...

    def delete(self, name: str, domain: str | None = None) -> None:
        """Remove a gateway's machine, address and DNS records; what is gone already is no error."""
        ...

    def names(self) -> Sequence[str]:
        """List the gateways that have a machine, whether they are known elsewhere or not."""
        ...

    def open_ports(self, name: str, ports: Iterable[int] = ()) -> None:
        """Open these ports of a gateway to clients, and no others beside 80 and 443."""
        ...


@runtime_checkable
class ProvidesGatewayMachines(Protocol):
    """A backend that creates the machines of gateways."""

    def gateway_machines(self) -> GatewayMachines:
        """Return those machines."""
        ...
