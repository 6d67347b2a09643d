"""What machines can do for us, whichever way they are reached."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["CommandMachine", "CommandResult", "DockerHost", "Machine"]


@dataclass(frozen=True)
class CommandResult:
    """How a command on a machine ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Machine(Protocol):
    """A machine that we hold, as far as probes and messages need to know it.

    Attributes:
        name: What messages and labels call it, for example `this machine` or `gpu-1`.
        publish_address: The address on which replicas publish their port: private, never 0.0.0.0.
        identity: What tells it from other machines that deploy to the same places; None: it is shared.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def publish_address(self) -> str:
        """Where replicas publish their ports."""
        ...

    @property
    def identity(self) -> str | None:
        """Whose replicas are on it; None: everybody's."""
        ...

    def connect(self, address: str, port: int, *, timeout: float = 5.0) -> socket.socket:
        """Open a TCP connection from the machine, as if a program there did.

        Args:
            address: An address as the machine sees it, such as its `publish_address`.
            port: The port.
            timeout: Seconds to wait for the connection, and later for each answer.

        Returns:
            Something that reads and writes like a socket.

        Raises:
            OSError: If nothing answers there.
            HostUnreachableError: If the machine does not answer.
        """
        ...


@runtime_checkable
class CommandMachine(Machine, Protocol):
    """A machine on which commands can be run."""

    def run(
        self, command: Sequence[str], *, stdin: bytes | None = None, timeout: float = 60.0
    ) -> CommandResult:
        """Run a command; its arguments are data, no shell reads them.

        Args:
            command: The program and its arguments.
            stdin: What it reads from its standard input.
            timeout: Seconds after which it is given up.

        Returns:
            Exit code and output, whatever the exit code is.

        Raises:
            HostUnreachableError: If the machine does not answer, or not in time.
        """
        ...

    def free_port(self) -> int:
        """Find a TCP port on `publish_address` that nothing listens on.

        Returns:
            A port outside the range that the kernel hands to clients.
        """
        ...


@runtime_checkable
class DockerHost(CommandMachine, Protocol):
    """A machine with a Docker Engine."""

    @property
    def engine_optional(self) -> bool:
        """Whether the machine is of use without an engine; it has no containers then."""
        ...

    def docker(self) -> DockerClient:
        """Reach the machine's Docker Engine.

        Returns:
            A client of the Docker SDK, shared by all callers in this process.

        Raises:
            HostNotReadyError: If there is no engine, or this user may not use it.
            HostUnreachableError: If the machine does not answer.
        """
        ...
