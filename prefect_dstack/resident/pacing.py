"""How often the controller looks: as often as is useful, and never so often that looking is all it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Pace"]

SHARE = 0.02
"""The share of one core that one kind of look may take."""
MOST = 5
"""So many times its interval a look is put off at most."""

Result = TypeVar("Result")


class Pace:
    """When something that is done again and again is due.

    Args:
        interval: Seconds from one beginning to the next at least.
        clock: Seconds, by a clock that only goes forward.
        cost: Seconds of computing, by which its price is measured; default: by the thread that does it.

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
        cost: Callable[[], float] = time.thread_time,
    ) -> None:
        self._interval, self._clock, self._cost = interval, clock, cost
        self._next = float("-inf")
        self._hurried = False

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
        self._next, self._hurried = began + self._interval, False
        try:
            return action()
        finally:
            pause = min((self._cost() - before) / SHARE, MOST * self._interval)
            if not self._hurried:
                self._next = began + max(self._interval, pause)

    def hurry(self) -> None:
        """Be due at once, or as soon as what is being done has ended."""
        self._next, self._hurried = float("-inf"), True
