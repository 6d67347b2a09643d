"""How often the controller looks: as often as is useful, and never so often that looking is all it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Pace"]

SHARE = 0.03
"""The share of the time that one kind of look may take, of one core where it is computing that counts."""

Result = TypeVar("Result")


class Pace:
    """When something that is done again and again is due.

    Args:
        interval: Seconds from one beginning to the next at least.
        clock: Seconds, by a clock that only goes forward.
        cost: Seconds, by which the time that it takes is measured; default: of computing, by this process.

    Example:
        >>> pace = Pace(60.0, time.monotonic)
        >>> pace.due
        True
        >>> pace.keep(lambda: "looked")
        'looked'
        >>> pace.due
        False
    """

    def __init__(
        self,
        interval: float,
        clock: Callable[[], float],
        cost: Callable[[], float] = time.process_time,
    ) -> None:
        self._interval, self._clock, self._cost = interval, clock, cost
        self._next = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it is time to do it."""
        return self._clock() >= self._next

    def keep(self, action: Callable[[], Result]) -> Result:
        """Do it, and do not be due again too soon; what takes longer is due later.

        Args:
            action: What is done.

        Returns:
            What the action returns.
        """
        began, before = self._clock(), self._cost()
        self._next = began + self._interval
        try:
            return action()
        finally:
            self._next = max(self._next, began + (self._cost() - before) / SHARE)

    def hurry(self) -> None:
        """Be due at once."""
        self._next = float("-inf")
