"""What one replica runs, and what it needs of a machine, whichever `type:` of configuration asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.configurations import (
    Cpu,
    Environment,
    FileMapping,
    InstanceMount,
    RegistryCredentials,
    Resources,
    RunConfiguration,
)
from prefect_dstack.domain.execution import RuntimeName, python_of, runtime_of

__all__ = [
    "RepositoryPlace",
    "Requirements",
    "RuntimeName",
    "WorkloadSpec",
    "requirements_of",
    "workload_spec",
]


class Requirements(BaseModel):
    """What a workload needs of a machine, and which machines may be used for it."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(default="", description="What messages call the workload.")
    runtime: RuntimeName = Field(default="docker", description="What starts it on a machine.")
    resources: Resources = Field(default_factory=Resources, description="What one replica needs.")
    backends: tuple[str, ...] | None = Field(default=None, description="The only backends; None: any.")
    fleets: tuple[str, ...] | None = Field(default=None, description="The only fleets; None: any.")
    instances: tuple[str, ...] | None = Field(
        default=None, description="The only instances of fleets, by name or host name; None: any."
    )
    regions: tuple[str, ...] | None = Field(default=None, description="The only regions; None: any.")
    availability_zones: tuple[str, ...] | None = Field(default=None, description="The only zones; None: any.")
    instance_types: tuple[str, ...] | None = Field(
        default=None, description="The only instance types; None: any."
    )
    spot_policy: Literal["spot", "on-demand", "auto"] | None = Field(
        default=None, description="Whether machines may be spot instances; None: on-demand."
    )
    max_price: float | None = Field(default=None, description="US dollars an hour at most; None: any price.")
    interconnected: bool = Field(
        default=False, description="Whether it connects to other workloads of its service or task."
    )
    tags: Mapping[str, str] = Field(
        default_factory=dict, description="Tags to put on what is created for the workload."
    )

    @property
    def cpus(self) -> float:
        """How many virtual processors one replica is promised."""
        cpu = self.resources.cpu
        return float((cpu.count.min if cpu and cpu.count else None) or 0)

    @property
    def memory_gb(self) -> float:
        """How much memory one replica is promised, in GB."""
        return float((self.resources.memory.min if self.resources.memory else None) or 0)

    @property
    def gpu_count(self) -> int:
        """How many GPUs one replica needs at least; more where `total_memory` takes more of them."""
        gpu = self.resources.gpu
        if gpu is None:
            return 0
        if gpu.count is None:
            return 1
        if gpu.count.min is not None:
            return int(gpu.count.min)
        return min(1, int(gpu.count.max or 0))


class RepositoryPlace(BaseModel):
    """Where a workload finds the Git repository that it brings along."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="The directory, relative to the working directory, or absolute.")
    if_exists: Literal["error", "skip"] = Field(
        default="error", description="What to do if something is in that directory already."
    )


class WorkloadSpec(BaseModel):
    """Everything that a runtime needs to start one replica."""

    model_config = ConfigDict(frozen=True)

    requirements: Requirements = Field(description="What it needs of a machine.")
    image: str | None = Field(default=None, description="The container image; None: a process.")
    python: str | None = Field(
        default=None,
        description="The Python of the virtual environment that its commands run in; empty: any; None: they "
        "run in none.",
    )
    pull: bool = Field(default=False, description="Whether the image is pulled even where it is there.")
    docker: bool = Field(
        default=False, description="Whether its commands have a Docker Engine of their own in the container."
    )
    entrypoint: str | None = Field(default=None, description="The entry point; None: the image's own.")
    commands: tuple[str, ...] = Field(default=(), description="Shell commands, until one fails.")
    shell: str | None = Field(
        default=None, description="The shell that runs the commands; None: the default."
    )
    user: str | None = Field(default=None, description="The user in the container; None: the image's.")
    working_dir: str | None = Field(default=None, description="Where the commands run.")
    privileged: bool = Field(default=False, description="Whether the container runs privileged.")
    port: int | None = Field(
        default=None, description="The port that the application listens on inside its container; None: none."
    )
    ports: tuple[int, ...] = Field(
        default=(), description="All ports of it that are reached from its machine, `port` among them."
    )
    restart: bool = Field(
        default=True, description="Whether it is started again when it ends; a task ends for good."
    )
    host_network: bool = Field(
        default=False,
        description="Whether it uses its machine's network, as nodes that talk to each other do.",
    )
    facts: Mapping[str, str] = Field(
        default_factory=dict, description="Variables that tell it its place among others, such as its rank."
    )
    environment: Environment = Field(default_factory=Environment, description="Variables, secrets apart.")
    registry: RegistryCredentials | None = Field(default=None, description="To pull a private image.")
    mounts: tuple[InstanceMount, ...] = Field(default=(), description="Directories of the machine to mount.")
    files: tuple[FileMapping, ...] = Field(default=(), description="Local files to bring along.")
    repository: RepositoryPlace | None = Field(
        default=None, description="Where the Git repository goes that it brings along; None: it brings none."
    )
    directory: Path = Field(description="What relative paths start from.")
    bundle: str = Field(default="", description="The digest of the copy of its files; empty: it has none.")
    source: str | None = Field(default=None, description="The file that asked for it, for messages.")
    lines: Mapping[str, int] = Field(default_factory=dict, description="The lines of its keys there.")

    @property
    def runtime(self) -> RuntimeName:
        """What starts it: `docker` or `process`."""
        return self.requirements.runtime

    @property
    def resources(self) -> Resources:
        """What one replica needs of a machine."""
        return self.requirements.resources


def requirements_of(configuration: RunConfiguration, *, interconnected: bool = False) -> Requirements:
    """Return what a configuration needs of a machine.

    Args:
        configuration: A service, a task or a development environment.
        interconnected: Whether its workloads connect to each other.

    Returns:
        Its requirements.
    """
    runtime, resources = runtime_of(configuration), configuration.resources
    if (
        runtime == "docker"
        and configuration.image is None
        and (resources.cpu is None or not resources.cpu.arch)
    ):
        # As in dstack: there is no default image for other processors.
        cpu = (resources.cpu or Cpu()).model_copy(update={"arch": "x86"})
        resources = resources.model_copy(update={"cpu": cpu})
    return Requirements(
        name=configuration.name or "",
        runtime=runtime,
        resources=resources,
        backends=configuration.backends,
        fleets=configuration.fleets,
        instances=tuple(map(str, configuration.instances)) if configuration.instances else None,
        regions=configuration.regions,
        availability_zones=configuration.availability_zones,
        instance_types=configuration.instance_types,
        spot_policy=configuration.spot_policy,
        max_price=configuration.max_price,
        # Processes of this machine reach each other anyway.
        interconnected=interconnected and runtime == "docker",
        tags=configuration.tags or {},
    )


def workload_spec(
    configuration: RunConfiguration,
    *,
    port: int | None,
    commands: tuple[str, ...],
    environment: Environment,
    registry: RegistryCredentials | None = None,
    default_image: str | None = None,
    directory: Path | None = None,
    bundle: str = "",
    interconnected: bool = False,
) -> WorkloadSpec:
    """Return what one replica of a configuration runs.

    Args:
        configuration: A service, a task or a development environment.
        port: The port that it listens on; None: none.
        commands: What it runs.
        environment: Its variables, with the values of its secrets.
        registry: Credentials for its image.
        default_image: The image of a container for which the configuration names none.
        directory: What relative paths start from; default: the configuration's directory.
        bundle: The digest of the copy of its files.
        interconnected: Whether its workloads connect to each other.

    Returns:
        The spec.
    """
    requirements = requirements_of(configuration, interconnected=interconnected)
    repositories = [RepositoryPlace(path=it.path, if_exists=it.if_exists) for it in configuration.repos]
    return WorkloadSpec(
        requirements=requirements,
        image=configuration.image or (default_image if requirements.runtime == "docker" else None),
        python=python_of(configuration, commands),
        docker=bool(configuration.docker),
        entrypoint=configuration.entrypoint,
        commands=commands,
        shell=configuration.shell,
        user=configuration.user,
        working_dir=configuration.working_dir,
        # An engine mounts file systems and makes networks.
        privileged=configuration.privileged or bool(configuration.docker),
        port=port,
        ports=() if port is None else (port,),
        environment=environment,
        registry=registry,
        mounts=tuple(volume for volume in configuration.volumes if isinstance(volume, InstanceMount)),
        files=configuration.files,
        repository=next(iter(repositories), None),
        directory=directory or configuration.directory,
        bundle=bundle,
        source=configuration.source_name,
        lines={
            key: line
            for key in ("files", "python", "repos.0.path", "shell")
            if (line := configuration.line_of(key)) is not None
        },
    )
