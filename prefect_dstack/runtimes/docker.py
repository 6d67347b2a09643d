"""Replicas that are containers, on this machine or on another: only the engine's client differs."""

from __future__ import annotations

import contextlib
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from docker import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container

from prefect_dstack.bundles import BundleStore
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import (
    CapacityError,
    ConflictError,
    HostNotReadyError,
    ImageError,
    NotFoundError,
)
from prefect_dstack.hosts.container_output import container_output
from prefect_dstack.hosts.download import unpack
from prefect_dstack.hosts.machine import DockerHost, Machine
from prefect_dstack.runtimes import docker_sessions
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus, Report
from prefect_dstack.runtimes.container_files import ENVIRONMENT_FILE, put_files, put_secrets
from prefect_dstack.runtimes.container_options import GPU_LABEL, container_options
from prefect_dstack.runtimes.entering import Session, Terminal
from prefect_dstack.runtimes.images import ensure_image

__all__ = ["DockerRuntime"]

# A directory that every host has: whoever may read it may lock it, and no file is left there.
GPU_LOCK = "/run"


class DockerRuntime:
    """Runs replicas as containers.

    Args:
        bundles: The copies of the files that revisions bring along; None: they are taken from where they are.
    """

    name = "docker"

    def __init__(self, bundles: BundleStore | None = None) -> None:
        self.bundles = bundles
        self._connecting: dict[str, bool] = {}

    def launch(self, machine: Machine, launch: Launch, report: Report) -> Replica:
        """Start a replica; see `Runtime.launch`."""
        host = docker_host(machine)
        engine = host.docker()
        existing = _container(engine, launch.stamp)
        if existing is not None and not _belongs(existing, machine):
            raise ConflictError(
                f"{machine.name}: a container named {existing.name} belongs to another home directory of "
                "prefect-dstack that uses the same Docker Engine: give the service another name"
            )
        if existing is not None and existing.status in ("running", "restarting"):
            return _replica(existing)
        if existing is not None:
            existing.remove(force=True, v=True)
        image = launch.spec.image or ""
        ensure_image(engine, image, launch.spec.registry, machine.name, report, pull=launch.spec.pull)
        report(f"{launch.stamp.name}: starting a container of {image} on {machine.name}")
        lock = getattr(machine, "lock", None)
        if not launch.gpu_devices or lock is None:
            return self._start(engine, host, launch)
        # Others choose GPUs by the labels of containers too, perhaps from other machines at this moment.
        with lock(GPU_LOCK):
            _refuse_taken(engine, host, launch)
            return self._start(engine, host, launch)

    def _start(self, engine: DockerClient, machine: DockerHost, launch: Launch) -> Replica:
        while True:
            published = {} if launch.spec.host_network else _free_ports(machine, launch.spec.ports)
            try:
                container = engine.containers.create(**container_options(engine, machine, launch, published))
            except (ImageNotFound, APIError) as error:
                raise ImageError(f"{machine.name}: {launch.spec.image}: {_words(error)}") from error
            try:
                put_secrets(container, launch.spec.environment)
                put_files(container, launch, self.bundles)
                _require_shell(container, launch.spec)
                container.start()
            except APIError as error:
                container.remove(force=True, v=True)
                if "port is already allocated" in str(error) or "address already in use" in str(error):
                    continue
                if "no space left" in str(error):
                    raise HostNotReadyError(f"{machine.name}: the disk is full: {_words(error)}") from error
                raise ImageError(f"{machine.name}: {launch.spec.image}: {_words(error)}") from error
            except BaseException:
                container.remove(force=True, v=True)
                raise
            return _replica(container)

    def replicas(self, machine: Machine) -> Sequence[Replica]:
        """List the containers of ours on a machine; see `Runtime.replicas`."""
        host = docker_host(machine)
        try:
            engine = host.docker()
        except HostNotReadyError:
            if host.engine_optional:
                return []
            raise
        labelled = engine.containers.list(
            all=True, ignore_removed=True, filters={"label": "prefect-dstack.service"}
        )
        return [
            _replica(container)
            for container in labelled
            if Stamp.from_labels(container.labels) and _belongs(container, machine)
        ]

    def status(self, machine: Machine, replica: Replica) -> ReplicaStatus:
        """Return how a container is; see `Runtime.status`."""
        container = _container(docker_host(machine).docker(), replica.stamp)
        if container is None:
            return ReplicaStatus(state="gone")
        state: Mapping[str, Any] = container.attrs["State"]
        known = {"running": "running", "restarting": "restarting", "created": "exited"}
        return ReplicaStatus.model_validate(
            {
                "state": known.get(state["Status"], "exited"),
                "restarts": container.attrs.get("RestartCount", 0),
                "exit_code": state.get("ExitCode"),
                "out_of_memory": state.get("OOMKilled", False),
                "detail": state.get("Error", ""),
                # One that never was has the year 1.
                "started_at": None
                if state.get("StartedAt", "").startswith("0001")
                else state.get("StartedAt"),
            }
        )

    def logs(
        self,
        machine: Machine,
        replica: Replica,
        *,
        tail: int | None = None,
        follow: bool = False,
        since: datetime | None = None,
    ) -> Iterator[str]:
        """Read a container's output; see `Runtime.logs`."""
        container = _container(docker_host(machine).docker(), replica.stamp)
        if container is not None:
            yield from container_output(container, tail=tail, follow=follow, since=since)

    def copy_back(self, machine: Machine, replica: Replica, path: str, target: Path) -> None:
        """Copy a file or directory of a container; see `Runtime.copy_back`."""
        container = _container(docker_host(machine).docker(), replica.stamp)
        if container is None:
            raise NotFoundError(f"{replica.name}: is gone, and with it {path}")
        source = PurePosixPath(container.attrs["Config"].get("WorkingDir") or "/") / path
        try:
            stream, _ = container.get_archive(str(source))
        except NotFound as error:
            raise NotFoundError(f"{replica.name}: there is no {path} in it") from error
        unpack(stream, source.name, target)

    def enter(
        self,
        machine: Machine,
        replica: Replica,
        command: str,
        terminal: Terminal | None,
        environment: Mapping[str, str],
    ) -> Session:
        """Start a program in a container; see `EntersReplicas.enter`."""
        engine, container = _running(machine, replica)
        has_secrets = ENVIRONMENT_FILE in " ".join(container.attrs["Config"].get("Entrypoint") or ())
        secrets = ENVIRONMENT_FILE if has_secrets else None
        try:
            return docker_sessions.start_session(
                engine, container, command, terminal, dict(environment), secrets
            )
        except APIError as error:
            raise HostNotReadyError(f"{machine.name}: {replica.name}: {_words(error)}") from error

    def open_connection(self, machine: Machine, replica: Replica, address: str, port: int) -> socket.socket:
        """Connect from within a container; see `EntersReplicas.open_connection`.

        Without a program in it that can do that, the ports that it has published are reached.
        """
        engine, container = _running(machine, replica)
        try:
            if replica.id not in self._connecting:
                self._connecting[replica.id] = docker_sessions.can_connect(container)
            if self._connecting[replica.id]:
                return docker_sessions.connect(engine, container, address, port)
        except APIError as error:
            raise HostNotReadyError(f"{machine.name}: {replica.name}: {_words(error)}") from error
        return machine.connect(replica.address, replica.ports.get(port, port))

    def staying(self, machine: Machine, replica: Replica) -> contextlib.AbstractContextManager[None]:
        """Count as somebody who uses a container; see `EntersReplicas.staying`."""
        return docker_sessions.staying(*_running(machine, replica))

    def is_in_use(self, machine: Machine, replica: Replica) -> bool:
        """Return whether somebody uses a container; see `EntersReplicas.is_in_use`."""
        return docker_sessions.is_in_use(*_running(machine, replica))

    def working_directory(self, machine: Machine, replica: Replica) -> str:
        """Return the directory in which sessions begin."""
        _, container = _running(machine, replica)
        return container.attrs["Config"].get("WorkingDir") or "/"

    def remove(self, machine: Machine, replica: Replica, grace: float) -> None:
        """Stop and remove a container; see `Runtime.remove`."""
        container = _container(docker_host(machine).docker(), replica.stamp)
        if container is None:
            return
        try:
            container.stop(timeout=round(grace))
            container.remove(force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if "is already in progress" not in str(error):
                raise


def docker_host(machine: Machine) -> DockerHost:
    """Return a machine as one with a Docker Engine.

    Args:
        machine: The machine.

    Returns:
        The same machine.

    Raises:
        HostNotReadyError: If its backend gives machines without one.
    """
    if not isinstance(machine, DockerHost):
        raise HostNotReadyError(f"{machine.name}: its backend gives no access to a Docker Engine")
    return machine


def _belongs(container: Container, machine: Machine) -> bool:
    """Return whether a container is not that of another home directory which uses the same engine."""
    owner = container.labels.get("prefect-dstack.machine", "")
    return machine.identity is None or owner in ("", machine.identity)


def _refuse_taken(engine: DockerClient, machine: DockerHost, launch: Launch) -> None:
    for container in engine.containers.list(
        all=True, ignore_removed=True, filters={"label": "prefect-dstack.service"}
    ):
        owned = container.labels.get(GPU_LABEL, "").split(",")
        taken = sorted(set(owned).intersection(launch.gpu_devices))
        stamp = Stamp.from_labels(container.labels)
        if taken and stamp is not None and stamp.name != launch.stamp.name:
            raise CapacityError(f"{machine.name}: {stamp.name} has just taken the GPU {', '.join(taken)}")


def _free_ports(machine: DockerHost, ports: Sequence[int]) -> dict[int, int]:
    chosen: dict[int, int] = {}
    for own in ports:
        port = machine.free_port()
        while port in chosen.values():
            port = machine.free_port()
        chosen[own] = port
    return chosen


def _require_shell(container: Container, spec: WorkloadSpec) -> None:
    """Refuse, before the start, an image that lacks the shell no configuration names."""
    (shell, *_) = container.attrs["Config"]["Entrypoint"] or [""]
    written = [spec.shell, *shlex.split(spec.entrypoint or "")[:1]]
    if not shell.startswith("/") or shell in written:
        return
    try:
        stream: Any = container.get_archive(shell)[0]
    except NotFound:
        needs = "'commands' need" if spec.commands else "secrets in 'env' need"
        hint = "name a program of its own in 'entrypoint'" if spec.commands else "give it one"
        raise ImageError(f"{spec.image}: the image has no {shell}, which {needs}; {hint}") from None
    stream.close()


def _container(engine: DockerClient, stamp: Stamp) -> Container | None:
    try:
        return engine.containers.get(f"prefect-dstack-{stamp.name}")
    except NotFound:
        return None


def _running(machine: Machine, replica: Replica) -> tuple[DockerClient, Container]:
    engine = docker_host(machine).docker()
    container = _container(engine, replica.stamp)
    if container is None or container.status != "running":
        raise NotFoundError(f"{replica.name}: does not run")
    return engine, container


def _replica(container: Container) -> Replica:
    container.reload()
    bindings = container.attrs["HostConfig"]["PortBindings"] or {}
    published = {int(own.partition("/")[0]): binding[0] for own, binding in bindings.items() if binding}
    ports = {own: int(binding["HostPort"]) for own, binding in published.items()}
    first = next(iter(published.values()), None)
    address = "127.0.0.1" if first is None else first["HostIp"]
    if container.attrs["HostConfig"].get("NetworkMode") == "host":
        listed = container.labels.get("prefect-dstack.ports", "").split(",")
        ports = {int(port): int(port) for port in listed if port}
        address = container.labels.get("prefect-dstack.address", address)
    return Replica.model_validate(
        {
            "stamp": Stamp.from_labels(container.labels),
            "runtime": "docker",
            "id": container.id,
            "address": address,
            "port": next(iter(ports.values()), 0),
            "ports": ports,
        }
    )


def _words(error: DockerException) -> str:
    words = error.explanation if isinstance(error, APIError) else None
    return " ".join(str(words or error).split())
