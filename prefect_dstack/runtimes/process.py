"""Replicas that are processes of this machine, for services without an `image`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import cast

import psutil
from pydantic import SecretStr

from prefect_dstack.bundles import BundleStore
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import ConfigurationError, NotFoundError
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.machine import CommandMachine, Machine
from prefect_dstack.hosts.output import read_output
from prefect_dstack.runtimes import process_sessions
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus, Report
from prefect_dstack.runtimes.entering import Session, Terminal
from prefect_dstack.runtimes.environment import described_environment
from prefect_dstack.runtimes.virtual_environment import make_virtual_environment, variables_of

__all__ = ["ProcessRuntime"]

# Holds the replica's directory: names are given again by who uses another home directory.
STAMP_VARIABLE = "PREFECT_DSTACK_REPLICA"

# In a replica's directory: by it the replica is found again.
RECORD = "replica.json"

# What must not be shared, or is of no use, beside the copy of a revision's files.
NEVER_LINKED = frozenset({".git", "__pycache__", ".dstack", ".dstackignore", ".gitignore"})
CONFIGURATION_ENDINGS = (".dstack.yml", ".dstack.yaml")

# What a shell finds out anew.
OF_SHELLS = ("OLDPWD", "PWD", "SHLVL", "_")

# What a program needs of the surroundings it was deployed from; everything else comes from `env`.
INHERITED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
INHERITED_PREFIXES = ("CONDA_", "CUDA_", "LC_", "LD_LIBRARY_", "PIP_", "SSL_CERT_", "UV_", "XDG_")


class ProcessRuntime:
    """Runs replicas as supervised process groups.

    Args:
        directory: Where each replica has a directory with its output and status.
        bundles: The copies of the files that revisions run from; None: they run where their files are.
    """

    name = "process"

    def __init__(self, directory: Path, bundles: BundleStore | None = None) -> None:
        self.directory = directory.absolute()
        self.bundles = bundles

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
                    port=self._port(machine, launch.spec),
                    ports={port: port for port in launch.spec.ports if launch.spec.port is None},
                )
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(place / RECORD, replica.model_dump_json())
            elif supervisor.status(place).state == "lost":
                _kill_strays(replica)
        report(f"{replica.name}: starting{f' on port {replica.port}' if replica.port else ''}")
        wanted = program(launch, replica, self._files(launch.spec, place))
        if launch.spec.python is not None:
            wanted = _in_virtual_environment(wanted, launch.spec, place, report)
        _write(place / "working-directory", str(wanted.working_directory))
        supervisor.start(place, wanted)
        return replica

    def replicas(self, machine: Machine) -> Sequence[Replica]:
        """List the replicas on this machine; see `Runtime.replicas`."""
        if not self.directory.is_dir():
            return []
        found = (_recorded(place) for place in sorted(self.directory.iterdir()) if place.is_dir())
        return [replica for replica in found if replica is not None]

    def status(self, machine: Machine, replica: Replica) -> ReplicaStatus:
        """Return how a replica is; see `Runtime.status`."""
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
                "started_at": known.started_at,
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
        """Read a replica's output; see `Runtime.logs`."""
        return read_output(Path(replica.id), tail=tail, follow=follow, since=since)

    def remove(self, machine: Machine, replica: Replica, grace: float) -> None:
        """Stop a replica and remove its directory; see `Runtime.remove`."""
        place = Path(replica.id)
        supervisor.stop(place, grace)
        _kill_strays(replica)
        # By its record it is found again if this is cut off, so that goes last.
        supervisor.remove(place, last=RECORD)

    def copy_back(self, machine: Machine, replica: Replica, path: str, target: Path) -> None:
        """Copy a file or directory of a replica; see `Runtime.copy_back`."""
        source = _working_directory(Path(replica.id)) / path
        if not source.exists():
            raise NotFoundError(f"{replica.name}: there is no {path} in it")
        if source.resolve() == target.resolve():
            return  # without a file of its own, a task runs in the caller's directory
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)

    def enter(
        self,
        machine: Machine,
        replica: Replica,
        command: str,
        terminal: Terminal | None,
        environment: Mapping[str, str],
    ) -> Session:
        """Start a program beside a replica; see `EntersReplicas.enter`."""
        own = _environment(replica)
        shell = own.get("SHELL") or shutil.which("bash") or "/bin/sh"
        return process_sessions.start_session(
            [shell, "-c", command] if command else [shell],
            {**own, **environment, **({} if terminal is None else {"TERM": terminal.kind})},
            _working_directory(Path(replica.id)),
            terminal,
        )

    def open_connection(self, machine: Machine, replica: Replica, address: str, port: int) -> socket.socket:
        """Connect as a replica would; see `EntersReplicas.open_connection`."""
        return machine.connect(address, port)

    def staying(self, machine: Machine, replica: Replica) -> contextlib.AbstractContextManager[None]:
        """Count as somebody who uses a replica; see `EntersReplicas.staying`."""
        return process_sessions.staying(Path(replica.id))

    def is_in_use(self, machine: Machine, replica: Replica) -> bool:
        """Return whether somebody uses a replica; see `EntersReplicas.is_in_use`."""
        return process_sessions.is_in_use(Path(replica.id))

    def working_directory(self, machine: Machine, replica: Replica) -> str:
        """Return the directory in which sessions begin."""
        return str(_working_directory(Path(replica.id)))

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

    def sweep(self, *, dry_run: bool = False) -> list[str]:
        """Remove what is left of replicas whose launch or removal was cut off: nobody else can find it.

        Args:
            dry_run: Only find it.

        Returns:
            The names of those replicas.
        """
        if not self.directory.is_dir():
            return []
        # Whoever makes a replica's directory holds the lock until the replica can be found in it.
        with self._lock():
            left = [place for place in self.directory.iterdir() if place.is_dir()]
            left = [place for place in left if not (place / RECORD).exists()]
            for place in left if not dry_run else ():
                shutil.rmtree(place, ignore_errors=True)
        return sorted(place.name for place in left)

    def _files(self, spec: WorkloadSpec, place: Path) -> Path:
        """Return where a replica runs: in its own copy of the revision's files, beside what is not in it."""
        if self.bundles is None or not spec.bundle:
            return spec.directory
        files = self.bundles.checkout(spec.bundle, place / "files")
        if spec.repository is not None:
            return files
        for name in linked_names(spec.directory, files):
            with contextlib.suppress(FileExistsError):
                (files / name).symlink_to(spec.directory / name)
        return files

    def _port(self, machine: Machine, spec: WorkloadSpec) -> int:
        # What names the ports that it listens on itself gets them; there is one machine for all.
        return 0 if spec.port is None else self._free_port(cast("CommandMachine", machine))

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


def linked_names(directory: Path, files: Path) -> list[str]:
    """Return the parts of a configuration's directory that are used in place, outside of a revision.

    Virtual environments, models and other data that ignore files name stay outside of the copy; commands
    find them by the same relative paths.

    Args:
        directory: The configuration's directory.
        files: The replica's copy of the revision's files.

    Returns:
        Names in `directory` that the copy lacks.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError:
        return []
    return [
        name
        for name in names
        if name not in NEVER_LINKED
        and not name.endswith(CONFIGURATION_ENDINGS)
        and not (files / name).exists()
    ]


def program(launch: Launch, replica: Replica, files: Path) -> supervisor.Program:
    """Return what the supervisor runs for a replica.

    Args:
        launch: What to start.
        replica: The replica that it becomes.
        files: The directory that its commands start in.

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
            **described_environment(launch.stamp, replica.port or None),
            **({"PORT": str(replica.port)} if replica.port else {}),
            **spec.facts,
            # Else what it prints is not in its log before its buffer is full.
            "PYTHONUNBUFFERED": "1",
            **spec.environment.plain,
            **spec.environment.secret,
            STAMP_VARIABLE: replica.id,
        },
        working_directory=files / (spec.working_dir or ""),
        restart=spec.restart,
    )


def _in_virtual_environment(
    wanted: supervisor.Program, spec: WorkloadSpec, place: Path, report: Report
) -> supervisor.Program:
    environment = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in wanted.environment.items()
    }
    directory = make_virtual_environment(place, spec, environment, report)
    variables = variables_of(directory, environment)
    return wanted.model_copy(update={"environment": {**wanted.environment, **variables}})


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


def _working_directory(place: Path) -> Path:
    try:
        return Path((place / "working-directory").read_text())
    except FileNotFoundError:
        return place


def _environment(replica: Replica) -> dict[str, str]:
    """Return the variables that the program of a replica has now: its commands may have set more."""
    pid = supervisor.status(Path(replica.id)).pid
    try:
        own = psutil.Process(pid).environ() if pid is not None else {}
    except psutil.Error:
        own = {}
    if STAMP_VARIABLE not in own:
        raise NotFoundError(f"{replica.name}: does not run")
    return {name: value for name, value in own.items() if name not in OF_SHELLS}


def _recorded(place: Path) -> Replica | None:
    try:
        return Replica.model_validate_json((place / RECORD).read_text())
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
