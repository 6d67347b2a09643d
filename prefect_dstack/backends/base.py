"""What a backend is: something that offers machines, gives them and takes them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.hosts.machine import Machine

__all__ = ["Backend", "Gpu", "Instance", "Offer", "Report"]

Report = Callable[[str], None]
"""Takes one line of progress, for a log or a terminal."""


class Gpu(BaseModel):
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
    cpus: float = Field(description="Virtual processors; of a held machine, those still free.")
    memory_gb: float = Field(description="Memory in GB; of a held machine, what is still free.")
    gpus: tuple[Gpu, ...] = Field(
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
    details: dict[str, JsonValue] = Field(
        default_factory=dict, description="What the backend needs to find and reach it again; never a secret."
    )


class Backend(Protocol):
    """Where machines come from. A new backend is one module with these methods."""

    @property
    def name(self) -> str:
        """What configurations and records call it."""
        ...

    def offers(self, configuration: ServiceConfiguration) -> Sequence[Offer]:
        """List what could be had for one replica.

        Args:
            configuration: Says which resources, prices, regions and kinds are acceptable.

        Returns:
            Acceptable offers, the best first: cheapest, then emptiest.

        Raises:
            NoOfferError: If nothing is acceptable; says why, and what comes closest.
            ProvisioningError: If the backend cannot be asked.
        """
        ...

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, configuration: ServiceConfiguration, report: Report
    ) -> Instance:
        """Get a machine for one replica. Run twice with one stamp, it finds the first result.

        Args:
            offers: This backend's offers to try, in order.
            stamp: For whom; written in the call that creates the machine.
            configuration: Of the service.
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
        """Give a machine back, and see that it is gone; where machines are shared, do nothing.

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
