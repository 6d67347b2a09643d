"""Replicas that are processes of this machine, for services without an `image`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import psutil

from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.machine import CommandMachine, Machine
from prefect_dstack.hosts.output import read_output
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus, Report
from prefect_dstack.runtimes.environment import described_environment

__all__ = ["ProcessRuntime"]

# Holds the replica's directory: names are given again by who uses another home directory.
STAMP_VARIABLE = "PREFECT_DSTACK_REPLICA"

# What a program needs of the surroundings it was deployed from; everything else comes from `env`.
INHERITED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
INHERITED_PREFIXES = ("CONDA_", "CUDA_", "LC_", "LD_LIBRARY_", "PIP_", "SSL_CERT_", "UV_", "XDG_")


class ProcessRuntime:
    """Runs replicas as supervised process groups.

    Args:
        directory: Where each replica has a directory with its output and status.
    """

    name = "process"

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def launch(self, machine: Machine, launch: Launch, report: Report) -> Replica:
        """Start a replica; see `Runtime.launch`."""
        place = self.directory / launch.stamp.name
        with self._lock():
            replica = _recorded(place)
            if replica is None or replica.stamp.model_copy(
                update={"flow_run": ""}
            ) != launch.stamp.model_copy(update={"flow_run": ""}):
                replica = Replica(
                    stamp=launch.stamp,
                    runtime="process",
                    id=str(place),
                    address=machine.publish_address,
                    port=self._free_port(cast("CommandMachine", machine)),
                )
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(place / "replica.json", replica.model_dump_json())
            elif supervisor.status(place).state == "lost":
                _kill_strays(replica)
        report(f"{replica.name}: starting on port {replica.port}")
        supervisor.start(place, program(launch, replica))
        return replica

    def replicas(self, machine: Machine) -> Sequence[Replica]:
        """List the replicas on this machine; see `Runtime.replicas`."""
        if not self.directory.is_dir():
            return []
        found = (_recorded(place) for place in sorted(self.directory.iterdir()) if place.is_dir())
        return [replica for replica in found if replica is not None]

    def status(self, machine: Machine, replica: Replica) -> ReplicaStatus:
        """Tell how a replica is; see `Runtime.status`."""
        known = supervisor.status(Path(replica.id))
        states = {
            "absent": "gone",
            "starting": "running",
            "running": "running",
            "waiting": "restarting",
            "stopping": "exited",
            "stopped": "exited",
            "lost": "exited",
        }
        return ReplicaStatus.model_validate(
            {
                "state": states[known.state],
                "restarts": known.restarts,
                "exit_code": known.exit_code,
                "detail": "its supervisor was killed" if known.state == "lost" else "",
            }
        )

    def logs(
        self, machine: Machine, replica: Replica, *, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        """Read a replica's output; see `Runtime.logs`."""
        return read_output(Path(replica.id), tail=tail, follow=follow)

    def remove(self, machine: Machine, replica: Replica, grace: float) -> None:
        """Stop a replica and remove its directory; see `Runtime.remove`."""
        place = Path(replica.id)
        supervisor.stop(place, grace)
        _kill_strays(replica)
        supervisor.remove(place)

    def listening_ports(self, replica: Replica) -> list[int]:
        """Find the TCP ports on which a replica's processes listen, for a message that helps.

        Args:
            replica: Which.

        Returns:
            The ports, in order.
        """
        ports: set[int] = set()
        for process in _processes(replica):
            with contextlib.suppress(psutil.Error):
                ports |= {
                    connection.laddr.port
                    for connection in process.net_connections(kind="tcp")
                    if connection.status == psutil.CONN_LISTEN
                }
        return sorted(ports)

    def _free_port(self, machine: CommandMachine) -> int:
        taken = {replica.port for replica in self.replicas(machine)}
        while (port := machine.free_port()) in taken:
            pass
        return port

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def program(launch: Launch, replica: Replica) -> supervisor.Program:
    """Say what the supervisor shall run for a replica.

    Args:
        launch: What to start.
        replica: The replica that it becomes.

    Returns:
        A shell that runs the commands, one after the other, until one fails.

    Raises:
        ConfigurationError: If this machine does not have the shell.
    """
    spec = launch.spec
    surroundings = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    return supervisor.Program(
        arguments=[_shell(spec), "-c", "set -e\n" + "\n".join(spec.commands)],
        environment={
            **surroundings,
            **described_environment(launch.stamp, replica.port),
            "PORT": str(replica.port),
            **spec.environment.plain,
            **spec.environment.secret,
            STAMP_VARIABLE: replica.id,
        },
        working_directory=spec.directory / (spec.working_dir or ""),
    )


def _shell(spec: WorkloadSpec) -> str:
    found = shutil.which(spec.shell or "bash")
    if found is None and spec.shell is not None:
        raise ConfigurationError(
            f"this machine has no {spec.shell}; install it, or remove the key",
            source=spec.source,
            line=spec.lines.get("shell"),
            key="shell",
        )
    return found or "/bin/sh"


def _recorded(place: Path) -> Replica | None:
    try:
        return Replica.model_validate_json((place / "replica.json").read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _processes(replica: Replica) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(STAMP_VARIABLE) == replica.id:
                yield process


def _kill_strays(replica: Replica) -> None:
    """Kill what outlived a supervisor that was itself killed: every descendant carries the stamp."""
    for process in _processes(replica):
        with contextlib.suppress(psutil.Error):
            process.kill()
