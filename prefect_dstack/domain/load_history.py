"""What a service has borne over the last day: few enough points to be kept for every service."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

__all__ = ["INTERVAL", "LoadHistory", "LoadPoint"]

INTERVAL = timedelta(minutes=10)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What a service bore in one interval.

    Attributes:
        start: When the interval began.
        rate: Answers a second, the mean of all looks.
        replicas: How many replicas served, at the most.
        looks: How often it was looked at.
    """

    start: datetime
    rate: float
    replicas: int
    looks: int = 1


class LoadHistory:
    """The loads of one service, in intervals; what is older than a day is forgotten.

    Example:
        >>> history = LoadHistory()
        >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        >>> history.add(noon, 2.0, 1)
        >>> history.add(noon + timedelta(minutes=1), 4.0, 2)
        >>> [(point.rate, point.replicas) for point in history.since(noon)]
        [(3.0, 2)]
    """

    def __init__(self) -> None:
        self._points: deque[LoadPoint] = deque(maxlen=DAY // INTERVAL)

    def add(self, at: datetime, rate: float, replicas: int) -> None:
        """Note what was seen.

        Args:
            at: When; never before what was noted last.
            rate: Answers a second.
            replicas: How many replicas served.
        """
        length = INTERVAL.total_seconds()
        start = datetime.fromtimestamp(at.timestamp() // length * length, UTC)
        last = self._points[-1] if self._points else None
        if last is None or last.start != start:
            self._points.append(LoadPoint(start, rate, replicas))
            return
        looks = last.looks + 1
        mean = last.rate + (rate - last.rate) / looks
        self._points[-1] = LoadPoint(start, mean, max(last.replicas, replicas), looks)

    def since(self, moment: datetime) -> list[LoadPoint]:
        """Return the intervals that began at a moment or later, the oldest first.

        Args:
            moment: The moment.
        """
        return [point for point in self._points if point.start >= moment]
