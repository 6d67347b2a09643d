"""Whether accelerators are used enough for their run to go on: a decision with a history, and no I/O."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Utilization"]


class Utilization:
    """The recent use of each accelerator of a run.

    Args:
        least: The least use, in percent.
        window: Seconds for which one of them may be used less.

    Example:
        >>> use = Utilization(least=10, window=3600)
        >>> use.note({"one": 3, "two": 80}, at=0.0)
        >>> use.note({"one": 5, "two": 95}, at=3600.0)
        >>> use.idle()
        'one'
    """

    def __init__(self, least: int, window: float) -> None:
        self._least, self._window = least, window
        self._idle_since: dict[str, float] = {}
        self._seen = 0.0

    def note(self, used: Mapping[str, int], at: float) -> None:
        """Note what was measured.

        Args:
            used: The use of each accelerator in percent; of one that is left out, nothing is known any more.
            at: Seconds, by any clock that only goes forward.
        """
        self._seen = at
        self._idle_since = {
            name: self._idle_since.get(name, at) for name, percent in used.items() if percent < self._least
        }

    def idle(self) -> str | None:
        """Return an accelerator that was used too little for the whole window; None if none was."""
        for name, since in self._idle_since.items():
            if self._seen - since >= self._window:
                return name
        return None
