"""Where the services of a run are, and what differs from one such place to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.chaos.plan import Fault

Heal = Callable[[], None]
Struck = tuple[str, Heal | None]
"""What has gone wrong, and what makes it pass."""


@dataclass(frozen=True)
class Wanted:
    """What is to be there once all is quiet.

    Attributes:
        replicas: The names of each service's replicas, by its name.
        ports: Where each of those services answers.
        controller: Whether a controller is to watch.
    """

    replicas: Mapping[str, set[str]]
    ports: Mapping[str, int]
    controller: bool

    @property
    def names(self) -> set[str]:
        """The names of all replicas."""
        return {name for replicas in self.replicas.values() for name in replicas}


class Place(Protocol):
    """Machines on which replicas and a gateway run."""

    @property
    def faults(self) -> Mapping[str, int]:
        """What may go wrong there, and how often each does, relative to the others."""

    @property
    def address(self) -> str:
        """Where its gateway answers."""

    def begin(self, done: Callable[..., object]) -> None:
        """Make what services need, by commands."""

    def end(self, done: Callable[..., object]) -> list[str]:
        """Take that down, and return what is left, in words."""

    def configuration(self, directory: Path) -> dict[str, Any]:
        """Return the keys by which the application in a directory runs there."""

    def task(self) -> dict[str, Any]:
        """Return the keys by which a task runs there."""

    def strike(self, fault: Fault, service: str, *, changing: bool) -> Struck:
        """Let something go wrong with a service; `changing`: while a command changes it."""

    def differences(self, wanted: Wanted) -> Iterator[str]:
        """Compare what runs there with what is wanted, in words."""
