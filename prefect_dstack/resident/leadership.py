"""Which of several controllers acts for services that any of them could change.

The leader writes when it was last there into a block, every few seconds; whoever finds that it has been
silent takes over. Two may lead for a moment: every change holds the lock of its service, so the second one
finds nothing left to do. A leader is silent when its sign of life is old, or when it has not changed for as
long as that would take: clocks may be set, and those of two machines differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect_dstack.blocks import DstackController
from prefect_dstack.store import documents
from prefect_dstack.store.controllers import SILENCE

__all__ = ["BEAT", "Leadership"]

BLOCK = "leader"
BEAT = 4.0
"""Seconds between two signs of life."""


@dataclass
class Leadership:
    """One candidate.

    Attributes:
        identity: What tells it from others.
        where: What people call its machine.
        clock: The time in Unix seconds.
        stopwatch: Seconds, by a clock that only goes forward.
    """

    identity: str
    where: str
    clock: Callable[[], float] = time.time
    stopwatch: Callable[[], float] = time.monotonic
    _heard: tuple[str, float, float] = field(default=("", 0.0, 0.0), init=False, repr=False)

    def lead(self) -> bool:
        """Show a sign of life, every `BEAT` seconds, and return whether this one leads now."""
        now = self.clock()
        known = documents.read(DstackController, BLOCK)
        other = {} if known is None else dict(known[1]["leader"])
        if other and other.get("identity") != self.identity and self._hears(other, now):
            return False
        mine = {"identity": self.identity, "where": self.where, "at": now}
        if known is None:
            documents.save(DstackController(leader=mine), BLOCK)
        else:
            documents.replace(known[0], {"leader": mine})
        return True

    def _hears(self, other: dict[str, Any], now: float) -> bool:
        """Return whether another one has shown a sign of life lately."""
        identity, at, elapsed = str(other["identity"]), float(other.get("at", 0)), self.stopwatch()
        if self._heard[:2] != (identity, at):
            self._heard = (identity, at, elapsed)
        return now - at < SILENCE and elapsed - self._heard[2] < SILENCE

    def resign(self) -> None:
        """Step down as leader at once."""
        known = documents.read(DstackController, BLOCK)
        if known is not None and known[1]["leader"].get("identity") == self.identity:
            documents.replace(known[0], {"leader": {}})
