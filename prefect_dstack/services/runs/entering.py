"""Ways into what runs: the entry for `ssh`, the keys, and the replica behind them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect.settings import get_current_settings

from prefect_dstack.api import local_server_url
from prefect_dstack.domain.run_record import RunRecord
from prefect_dstack.errors import ConflictError, NotFoundError
from prefect_dstack.hosts.host_keys import HostKey
from prefect_dstack.hosts.identity import MachineIdentity
from prefect_dstack.hosts.ssh_entry import SshEntry
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.entering import Entrance, entrance

if TYPE_CHECKING:
    import paramiko

__all__ = ["SshKeys", "check_entry", "entrance_of", "entrance_of_found", "ssh_entry", "ssh_keys"]

# What the command behind an entry needs to find the same Prefect API and home directory; none is a secret.
HANDED_ON = ("DOCKER_HOST", "PREFECT_DSTACK_HOME", "PREFECT_HOME", "PREFECT_PROFILE")


@dataclass(frozen=True)
class SshKeys:
    """The two keys of this home directory with which its user enters what runs.

    Attributes:
        identity_file: The private key that the client has.
        client: The same, read.
        host: What the server shows.
    """

    identity_file: Path
    client: paramiko.PKey
    host: paramiko.PKey


def ssh_keys(home: Path) -> SshKeys:
    """Return the keys of a home directory; made when they are first needed.

    Args:
        home: The home directory of prefect-dstack.
    """
    directory = home.absolute() / "ssh-keys"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    with contextlib.ExitStack() as held:
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        client, host = (_key(directory / name) for name in ("client", "host"))
    return SshKeys(directory / "client", client, host)


def ssh_entry(name: str, home: Path, node: int = 0) -> SshEntry:
    """Return the entry by which `ssh NAME` enters a run.

    Args:
        name: The run.
        home: The home directory of prefect-dstack.
        node: The rank of the node.
    """
    keys = ssh_keys(home)
    variables = {variable: value for variable in HANDED_ON if (value := os.environ.get(variable))}
    variables["PREFECT_DSTACK_HOME"] = str(home.absolute())
    url = get_current_settings().api.url
    # The local server is found again, whatever its port is then.
    if url is not None and url != local_server_url() and urlsplit(url).username is None:
        variables["PREFECT_API_URL"] = url
    words = [f"{variable}={value}" for variable, value in variables.items()]
    command = [sys.executable, "-P", "-m", "prefect_dstack.cli.ssh_proxy", name, str(node)]
    return SshEntry(
        name=name,
        hostname=name,
        identity_file=keys.identity_file,
        host_key=HostKey(keys.host.get_name(), keys.host.asbytes()).line,
        proxy_command=shlex.join(["env", *words, *command]).replace("%", "%%"),
    )


def check_entry(record: RunRecord, here: MachineIdentity, node: int = 0) -> None:
    """Refuse to enter what cannot be entered from here, as far as its record knows.

    Args:
        record: The record of the run.
        here: This machine.
        node: The rank of the node.

    Raises:
        ConflictError: If it is over, or runs on another machine.
        NotFoundError: If it has no such node.
    """
    name = record.name
    if record.is_over:
        raise ConflictError(f"{name}: has ended ({record.state}); prefect-dstack apply runs it again")
    if here.differs_from(record.location):
        raise ConflictError(f"{name}: runs on {record.location}, and this is {here}: enter it there")
    if not 0 <= node < record.nodes:
        raise NotFoundError(f"{name}: has no node {node}; it has {record.nodes}, counted from 0")


def entrance_of(record: RunRecord, infrastructure: Infrastructure, node: int = 0) -> Entrance:
    """Return the way into a node of a run.

    Args:
        record: The record of the run.
        infrastructure: Where it runs.
        node: The rank of the node.

    Raises:
        ConflictError: If it is over, or runs on another machine.
        NotFoundError: If it has no such node that runs.
        HostError: If its machine fails, or lets nobody in.
    """
    check_entry(record, infrastructure.here, node)
    name = record.name
    replica = f"{name}-{record.number}-{node}"
    seen = infrastructure.observe(name, [record.runtime])
    found = seen.of(replica)
    if found is None or found.status.state != "running":
        silent = [f"{machine}: {reason}" for machine, reason in seen.unreachable.items()]
        raise NotFoundError("; ".join([f"{replica}: does not run", *silent]))
    return entrance_of_found(found, infrastructure)


def entrance_of_found(found: FoundReplica, infrastructure: Infrastructure) -> Entrance:
    """Return the way into a replica.

    Args:
        found: The replica, and where it runs.
        infrastructure: What it runs on.

    Raises:
        HostError: If its machine fails, or lets nobody in.
    """
    instance, replica = found.instance, found.replica
    runtime = infrastructure.runtime(instance, replica.runtime)
    return entrance(runtime, infrastructure.machine(instance), replica)


def _key(path: Path) -> paramiko.PKey:
    # What imports paramiko is not for those who deploy services.
    from prefect_dstack.hosts.keys import generate_key_pair, read_private_key

    if not path.exists():
        fresh = path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(generate_key_pair().private.get_secret_value())
        fresh.replace(path)
    return read_private_key(path.read_text())
