"""What lets somebody enter a replica that runs: a shell, commands, and connections to its ports."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from prefect_dstack.errors import HostNotReadyError
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.runtimes.base import Replica, ReplicaStatus, Runtime

__all__ = ["EntersReplicas", "Entrance", "Session", "Terminal", "entrance"]

Write = Callable[[bytes], object]


@dataclass(frozen=True)
class Terminal:
    """The terminal of a session.

    Attributes:
        kind: What `TERM` says, such as `xterm-256color`.
        columns: Its width in characters.
        rows: Its height in lines.
    """

    kind: str
    columns: int
    rows: int


class Session(Protocol):
    """A program that runs in a replica for whoever has entered it."""

    def copy_output(self, out: Write, err: Write) -> None:
        """Pass on what the program writes, until it writes no more.

        Args:
            out: Takes its standard output; with a terminal, all that it writes.
            err: Takes its standard error.
        """
        ...

    def write(self, data: bytes) -> None:
        """Write to its standard input. What a program that has ended does not read is lost."""
        ...

    def end_input(self) -> None:
        """End its standard input."""
        ...

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of its terminal."""
        ...

    def exit_code(self) -> int:
        """Wait for the program to end, and return its exit code, 128 and more for a signal."""
        ...

    def close(self) -> None:
        """Release the program; one that has a terminal gets SIGHUP if it still runs."""
        ...


@runtime_checkable
class EntersReplicas(Protocol):
    """A runtime whose replicas can be entered."""

    def status(self, machine: Machine, replica: Replica) -> ReplicaStatus:
        """Return how a replica is; see `Runtime.status`."""
        ...

    def enter(
        self,
        machine: Machine,
        replica: Replica,
        command: str,
        terminal: Terminal | None,
        environment: Mapping[str, str],
    ) -> Session:
        """Start a program in a replica, as its user, with its environment.

        Args:
            machine: Where it runs.
            replica: Which.
            command: For its shell; empty: the shell itself.
            terminal: The terminal of the program; None: it has none.
            environment: More variables, such as `LANG`.

        Returns:
            The session.

        Raises:
            NotFoundError: If the replica is gone.
            HostError: If the machine fails.
        """
        ...

    def open_connection(self, machine: Machine, replica: Replica, address: str, port: int) -> socket.socket:
        """Connect to an address as a program of the replica would.

        Args:
            machine: Where it runs.
            replica: Which.
            address: A host name or address as the replica sees it, such as `localhost`.
            port: The TCP port.

        Returns:
            A connected socket.

        Raises:
            OSError: If nothing answers there.
            HostError: If the machine fails.
        """
        ...

    def staying(self, machine: Machine, replica: Replica) -> AbstractContextManager[None]:
        """Count as somebody who uses the replica, until the context ends or this process does."""
        ...

    def is_in_use(self, machine: Machine, replica: Replica) -> bool:
        """Return whether somebody uses the replica; see `staying`."""
        ...

    def working_directory(self, machine: Machine, replica: Replica) -> str:
        """Return the directory in which sessions begin."""
        ...


@dataclass(frozen=True)
class Entrance:
    """One replica that can be entered.

    Attributes:
        runtime: What runs it.
        machine: Where it runs.
        replica: Which it is.
    """

    runtime: EntersReplicas
    machine: Machine
    replica: Replica

    def is_running(self) -> bool:
        """Return whether it still runs."""
        return self.runtime.status(self.machine, self.replica).state == "running"

    def enter(self, command: str, terminal: Terminal | None, environment: Mapping[str, str]) -> Session:
        """Start a program in it; see `EntersReplicas.enter`."""
        return self.runtime.enter(self.machine, self.replica, command, terminal, environment)

    def open_connection(self, address: str, port: int) -> socket.socket:
        """Connect as one of its programs would; see `EntersReplicas.open_connection`."""
        return self.runtime.open_connection(self.machine, self.replica, address, port)

    def staying(self) -> AbstractContextManager[None]:
        """Count as somebody who uses it; see `EntersReplicas.staying`."""
        return self.runtime.staying(self.machine, self.replica)

    def is_in_use(self) -> bool:
        """Return whether somebody uses it."""
        return self.runtime.is_in_use(self.machine, self.replica)

    def working_directory(self) -> str:
        """Return the directory in which sessions begin."""
        return self.runtime.working_directory(self.machine, self.replica)


def entrance(runtime: Runtime, machine: Machine, replica: Replica) -> Entrance:
    """Return the way into a replica.

    Args:
        runtime: What runs it.
        machine: Where it runs.
        replica: Which.

    Raises:
        HostNotReadyError: If replicas of this runtime cannot be entered.
    """
    if not isinstance(runtime, EntersReplicas):
        raise HostNotReadyError(f"{replica.name}: what its runtime, {runtime.name}, runs cannot be entered")
    return Entrance(runtime, machine, replica)
