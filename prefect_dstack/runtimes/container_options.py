"""What the engine is told of a replica's container."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from docker import DockerClient
from docker.types import DeviceRequest, LogConfig

from prefect_dstack.configurations import InstanceMount
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import HostNotReadyError
from prefect_dstack.hosts.machine import DockerHost
from prefect_dstack.runtimes.base import Launch
from prefect_dstack.runtimes.container_files import ENVIRONMENT_FILE
from prefect_dstack.runtimes.environment import described_environment
from prefect_dstack.runtimes.virtual_environment import environment_commands

__all__ = ["GPU_LABEL", "container_options", "labels"]

GPU_LABEL = "prefect-dstack.gpu-devices"
LOGS = LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"})


def container_options(
    engine: DockerClient, machine: DockerHost, launch: Launch, published: Mapping[int, int]
) -> dict[str, Any]:
    """Describe the container of a replica.

    Args:
        engine: Asked for the image's own entry point where secrets have to be put before it.
        machine: Where it will run.
        launch: What it is for.
        published: The ports of the machine by those of the container that are published on them.

    Returns:
        The arguments of the Docker SDK's `containers.create`.
    """
    spec = launch.spec
    inner = spec.port
    resources = spec.resources
    memory = resources.memory.max if resources.memory else None
    cpus = resources.cpu.count.max if resources.cpu and resources.cpu.count else None
    entrypoint, command = _command(spec)
    if launch.spec.environment.secret:
        entrypoint, command = _with_secrets(engine, spec, entrypoint, command)
    environment = {
        **described_environment(launch.stamp, inner),
        **({} if inner is None else {"PORT": str(inner)}),
        **spec.facts,
        "PYTHONUNBUFFERED": "1",
        **launch.spec.environment.plain,
    }
    return {
        "image": spec.image,
        "name": f"prefect-dstack-{launch.stamp.name}",
        "hostname": None if spec.host_network else launch.stamp.name,
        "labels": labels(launch, inner, machine.publish_address),
        "entrypoint": entrypoint,
        "command": command,
        "environment": environment,
        "ports": {f"{own}/tcp": (machine.publish_address, port) for own, port in published.items()},
        "network_mode": "host" if spec.host_network else None,
        "restart_policy": {"Name": "unless-stopped" if spec.restart else "no"},
        "log_config": LOGS,
        "init": True,
        "user": spec.user,
        "working_dir": spec.working_dir,
        "privileged": spec.privileged,
        "security_opt": None if spec.privileged else ["no-new-privileges:true"],
        # In this older form the engine makes directories that are missing.
        "volumes": [
            f"{_on_machine(machine, volume)}:{volume.path}{':ro' if volume.read_only else ''}"
            for volume in spec.mounts
            if _is_there_if_it_must(machine, volume)
        ],
        "mem_limit": None if memory is None else round(memory * 1024**3),
        # The engine refuses a limit above what its machine has.
        "nano_cpus": None if cpus is None else round(min(cpus, engine.info()["NCPU"]) * 1e9),
        "shm_size": round(resources.shm_size * 1024**3) if resources.shm_size else None,
        "device_requests": _devices(launch),
    }


def labels(launch: Launch, port: int | None, address: str) -> dict[str, str]:
    """Return the labels of a container: what it is for, and what is reserved for it.

    Args:
        launch: The replica.
        port: The port it listens on inside; None: none.
        address: At which its machine is reached by others.

    Returns:
        The container's labels.
    """
    requirements = launch.spec.requirements
    return {
        **requirements.tags,
        **launch.stamp.labels(),
        # The ports of a task are led to whoever runs it, from wherever its commands listen.
        "prefect-dstack.address": "127.0.0.1" if port is None else address,
        "prefect-dstack.port": "" if port is None else str(port),
        "prefect-dstack.ports": ",".join(map(str, launch.spec.ports)),
        "prefect-dstack.cpus": f"{requirements.cpus:g}",
        "prefect-dstack.memory-gb": f"{requirements.memory_gb:.10g}",
        GPU_LABEL: ",".join(launch.gpu_devices),
    }


def _command(spec: WorkloadSpec) -> tuple[list[str] | None, list[str] | None]:
    before = ["start-dockerd"] if spec.docker else []
    if spec.python is not None:
        before += environment_commands(spec.python)
    script = "\n".join(["set -e", *before, *spec.commands]) if spec.commands else None
    if spec.entrypoint:
        return shlex.split(spec.entrypoint), None if script is None else [script]
    if script is None:
        return None, None
    # Default images have Bash, and what is written for dstack counts on it.
    shell = "/bin/bash" if spec.docker or spec.python is not None else "/bin/sh"
    return [spec.shell or shell, "-c"], [script]


def _with_secrets(
    engine: DockerClient,
    spec: WorkloadSpec,
    entrypoint: list[str] | None,
    command: list[str] | None,
) -> tuple[list[str], list[str]]:
    """Read secrets from a file in the container, where `docker inspect` does not show them."""
    if entrypoint is None:
        own = engine.images.get(spec.image or "").attrs["Config"]
        entrypoint, command = own.get("Entrypoint") or [], command or own.get("Cmd") or []
    return (
        ["/bin/sh", "-c", f'. {ENVIRONMENT_FILE}; exec "$@"', "sh"],
        [*entrypoint, *(command or [])],
    )


def _is_there_if_it_must(machine: DockerHost, volume: InstanceMount) -> bool:
    return not volume.optional or machine.run(["test", "-e", _on_machine(machine, volume)]).exit_code == 0


def _on_machine(machine: DockerHost, volume: InstanceMount) -> str:
    path = volume.instance_path
    if not path.startswith("~"):
        return path
    found = machine.run(["/bin/sh", "-c", 'printf %s "$HOME"'])
    home = found.stdout.decode(errors="replace").rstrip("/")
    if found.exit_code != 0 or (home and not home.startswith("/")):
        raise HostNotReadyError(f"{machine.name}: its user has no home directory, which {path} starts from")
    return home + path[1:] or "/"


def _devices(launch: Launch) -> list[DeviceRequest] | None:
    if launch.gpu_devices:
        return [DeviceRequest(device_ids=list(launch.gpu_devices), capabilities=[["gpu"]])]
    if launch.spec.requirements.gpu_count == 0:
        return None
    # Its backend has set none aside: the machine is the replica's own, with all that it has.
    return [DeviceRequest(count=-1, capabilities=[["gpu"]])]
