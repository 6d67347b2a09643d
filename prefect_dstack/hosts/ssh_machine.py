"""A machine that is reached over SSH."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import paramiko
from docker import DockerClient

from prefect_dstack.errors import HostNotReadyError, HostUnreachableError
from prefect_dstack.hosts import unix_sockets
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.engine import docker_engine
from prefect_dstack.hosts.locks import host_lock
from prefect_dstack.hosts.machine import CommandResult
from prefect_dstack.hosts.pool import connection_to
from prefect_dstack.hosts.remote_ports import RemotePorts
from prefect_dstack.hosts.ssh import ChannelRefusedError
from prefect_dstack.hosts.tcp_channel import TcpChannel

__all__ = ["Root", "SshMachine"]


class SshMachine:
    """A machine reached over SSH; implements `DockerHost`.

    Any number of these share one connection to the host.

    Args:
        access: How it is reached.
        name: What messages and labels call it; default: its host name.
        publish_address: Where replicas publish their ports: a private address of its, or 127.0.0.1.
    """

    def __init__(
        self, access: SshAccess, *, name: str | None = None, publish_address: str = "127.0.0.1"
    ) -> None:
        self.access = access
        self.name = name or access.hostname
        self.publish_address = publish_address
        self.connection = connection_to(access, self.name)
        self._ports = RemotePorts(self.connection, publish_address)
        self._lock = threading.Lock()
        self._user_id: int | None = None

    def __repr__(self) -> str:
        return f"SshMachine({self.name!r})"

    @property
    def identity(self) -> None:
        """It belongs to nobody in particular; see `Machine.identity`."""

    @property
    def engine_optional(self) -> bool:
        """It runs nothing but containers; see `DockerHost.engine_optional`."""
        return False

    def docker(self) -> DockerClient:
        """Reach the host's Docker Engine; see `Machine.docker`."""
        return docker_engine(self.connection)

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout: float = 60.0,
        idempotent: bool = False,
    ) -> CommandResult:
        """Run a command there; see `Machine.run`.

        Args:
            command: The program and its arguments.
            stdin: What it reads from its standard input.
            timeout: Seconds after which it is given up.
            idempotent: Whether it is run again, once, if the connection is lost meanwhile.

        Returns:
            Exit code and output.
        """
        return self.connection.run(command, stdin=stdin, timeout=timeout, idempotent=idempotent)

    def connect(self, address: str, port: int, *, timeout: float = 5.0) -> socket.socket:
        """Open a TCP connection from there; see `Machine.connect`."""
        try:
            channel = self.connection.open_tcp(address, port)
        except ChannelRefusedError as error:
            raise ConnectionRefusedError(f"{self.name}: nothing answers on {address}:{port}") from error
        channel.settimeout(timeout)
        return cast("socket.socket", TcpChannel(channel))

    def free_port(self) -> int:
        """Find a free port there; see `Machine.free_port`."""
        return self._ports.pick()

    def lock(
        self, path: str, *, wait: float = 30.0, lease: float = 300.0, prefix: Sequence[str] = ()
    ) -> AbstractContextManager[None]:
        """Hold a lock there; see `host_lock`."""
        return host_lock(self.connection, path, wait=wait, lease=lease, prefix=prefix)

    @property
    def is_root(self) -> bool:
        """Whether we are root there without `sudo`."""
        with self._lock:
            if self._user_id is None:
                answer = self.run(["id", "-u"], idempotent=True).stdout
                if not answer.strip().isdigit():
                    raise HostUnreachableError(f"{self.name}: does not run commands: `id -u` says nothing")
                self._user_id = int(answer)
            return self._user_id == 0

    def root(self) -> Root:
        """Act as root there.

        Returns:
            What runs commands as root: through `sudo -n`, unless we are root.

        Raises:
            HostNotReadyError: If we are not, and `sudo` wants a password.
        """
        if self.is_root:
            return Root(self, ())
        if self.run(["sudo", "-n", "true"], idempotent=True).exit_code != 0:
            raise HostNotReadyError(
                f"{self.name}: the user there needs `sudo` without a password for this, or log in as root"
            )
        return Root(self, ("sudo", "-n"))

    def open_unix_socket(self, path: str, *, as_root: bool = False) -> paramiko.Channel:
        """Connect to a unix socket there; see `unix_sockets.connect`."""
        prefix = self.root().prefix if as_root else ()
        return unix_sockets.connect(self.connection, path, prefix)


@dataclass(frozen=True)
class Root:
    """A machine on which every command is run as root.

    Attributes:
        machine: The machine.
        prefix: What stands before each command.
    """

    machine: SshMachine
    prefix: tuple[str, ...]

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.machine.name

    def run(
        self, command: Sequence[str], *, stdin: bytes | None = None, timeout: float = 60.0
    ) -> CommandResult:
        """Run a command as root; see `Machine.run`."""
        return self.machine.run([*self.prefix, *command], stdin=stdin, timeout=timeout)
