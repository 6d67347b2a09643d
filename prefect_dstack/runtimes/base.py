"""What a runtime is: something that starts replicas on a machine and knows how they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.hosts.machine import Machine

__all__ = ["Launch", "Replica", "ReplicaStatus", "Report", "Runtime"]

Report = Callable[[str], None]
"""Takes one line of progress, for a log or a terminal."""


class Launch(BaseModel):
    """All that is needed to start one replica."""

    model_config = ConfigDict(frozen=True)

    stamp: Stamp = Field(description="For whom; every trace of the replica carries it.")
    spec: WorkloadSpec = Field(description="What it runs.")
    gpu_devices: tuple[str, ...] = Field(default=(), description="The accelerators set aside for it.")


class Replica(BaseModel):
    """One running copy of a service, as a runtime sees it."""

    model_config = ConfigDict(frozen=True)

    stamp: Stamp = Field(description="For whom it runs.")
    runtime: str = Field(description="What runs it: `docker`, `process`, or a backend's own runtime.")
    id: str = Field(description="What the runtime calls it.")
    address: str = Field(description="Where it listens, on its machine.")
    port: int = Field(description="The TCP port there; 0: it listens on none.")
    ports: dict[int, int] = Field(
        default_factory=dict, description="The ports there by those that the application listens on."
    )

    @property
    def name(self) -> str:
        """Its name, unique among all services: `hello-3-0`."""
        return self.stamp.name


class ReplicaStatus(BaseModel):
    """How a replica is."""

    model_config = ConfigDict(frozen=True)

    state: Literal["running", "restarting", "exited", "gone"] = Field(
        description="`restarting`: it ended and will be started again; `exited`: it ended for good."
    )
    restarts: int = Field(default=0, description="How often it was restarted.")
    exit_code: int | None = Field(default=None, description="How it last ended.")
    out_of_memory: bool = Field(default=False, description="Whether the kernel killed it for its memory.")
    detail: str = Field(default="", description="The runtime's own words.")
    started_at: datetime | None = Field(
        default=None, description="When it was last started; None: that is not known."
    )


class Runtime(Protocol):
    """What starts replicas on a machine."""

    @property
    def name(self) -> str:
        """What replicas and records call it."""
        ...

    def launch(self, machine: Machine, launch: Launch, report: Report) -> Replica:
        """Start a replica. Run twice with one stamp, it finds the first result.

        Args:
            machine: Where.
            launch: What.
            report: Told of progress, such as an image that is pulled.

        Returns:
            The replica; it may not listen yet.

        Raises:
            ImageError: If its image cannot be had or started.
            HostError: If the machine fails us.
        """
        ...

    def replicas(self, machine: Machine) -> Sequence[Replica]:
        """List every replica of ours on a machine, running or not.

        Args:
            machine: Where.

        Returns:
            Found by their stamps.
        """
        ...

    def status(self, machine: Machine, replica: Replica) -> ReplicaStatus:
        """Return how a replica is."""
        ...

    def logs(
        self,
        machine: Machine,
        replica: Replica,
        *,
        tail: int | None = None,
        follow: bool = False,
        since: datetime | None = None,
    ) -> Iterator[str]:
        """Read what a replica has written.

        Args:
            machine: Where it runs.
            replica: Which.
            tail: Only so many lines from the end; None: all that is kept.
            follow: Go on with what it writes from now, until it is gone.
            since: Only what was written since then, to the second; None: all that is kept.

        Yields:
            Lines without their end.
        """
        ...

    def copy_back(self, machine: Machine, replica: Replica, path: str, target: Path) -> None:
        """Copy a file or directory of a replica to this machine.

        Args:
            machine: Where it runs, or ran.
            replica: Which.
            path: Of the file or directory; a relative one starts from where its commands run.
            target: Where it goes; replaced if it is there.

        Raises:
            NotFoundError: If the replica has no such file.
            HostError: If the machine fails.
        """
        ...

    def remove(self, machine: Machine, replica: Replica, grace: float) -> None:
        """Stop a replica and remove every trace of it. A replica that is gone already is no error.

        Args:
            machine: Where it runs.
            replica: Which.
            grace: Seconds between SIGTERM and SIGKILL.
        """
        ...
