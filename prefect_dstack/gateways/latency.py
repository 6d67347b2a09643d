"""How long replicas take, from counters that HAProxy keeps in buckets."""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["BUCKETS", "UNIT", "Bucket", "Durations", "Tally", "bucket_map", "mean", "quantile"]

UNIT = 100
"""Microseconds in which HAProxy counts: its 32 bits last for five days."""

# Of each decade, these; all edges are whole units, and each is at most 1.5 times the one before.
_STEPS = (1.0, 1.5, 2.0, 2.5, 3.5, 5.0, 7.0)
_DECADES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_RATIO = 1.5
_COUNTER_SIZE = 2**32


@dataclass(frozen=True)
class Bucket:
    """A range of durations in microseconds, both ends included."""

    low: int
    high: int


def _buckets() -> tuple[Bucket, ...]:
    edges = [0, 500, 700, *(round(decade * step) for decade in _DECADES for step in _STEPS), 100_000_000]
    return tuple(Bucket(low, high - 1) for low, high in itertools.pairwise([*edges, _COUNTER_SIZE * UNIT]))


BUCKETS = _buckets()
# Those that Prometheus is told of, from 2.5 ms to 50 s: each further one is a series of every replica.
_BOUNDS = frozenset(round(decade * step) for decade in _DECADES for step in (1.0, 2.5, 5.0)) - {1_000}


class Tally(NamedTuple):
    """What HAProxy has counted in one bucket."""

    answers: int = 0
    units: int = 0
    """All durations together; begins anew when its 32 bits are full."""


@dataclass
class Durations:
    """How long answers took to begin, added up over looks and processes.

    Attributes:
        counts: How many there were, by the index of their bucket.
        units: All durations together.
    """

    counts: Counter[int] = field(default_factory=Counter)
    units: int = 0

    def grow(self, before: Mapping[int, Tally], now: Mapping[int, Tally]) -> None:
        """Add what was counted between two looks at one process.

        Args:
            before: The tallies of the earlier look, by bucket.
            now: Those of the later one.
        """
        for bucket, tally in now.items():
            known = before.get(bucket, Tally())
            if tally.answers < known.answers:  # HAProxy forgets a bucket into which nothing falls for long
                known = Tally()
            self.counts[bucket] += tally.answers - known.answers
            units = (tally.units - known.units) % _COUNTER_SIZE
            if units < _COUNTER_SIZE // 2:  # else somebody has set the clock back
                self.units += units

    def add(self, other: Durations) -> None:
        """Add what was counted elsewhere."""
        self.counts.update(other.counts)
        self.units += other.units

    @property
    def seconds(self) -> float:
        """All durations together."""
        # HAProxy has cut off half a unit of each, on average.
        return (self.units + self.counts.total() / 2) * UNIT / 1e6

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield the bounds of Prometheus' buckets, in seconds, and how many answers began within each."""
        total = 0
        for index, bucket in enumerate(BUCKETS):
            total += self.counts[index]
            if bucket.high + 1 in _BOUNDS:
                yield str((bucket.high + 1) / 1e6), total
        yield "+Inf", total


def bucket_map() -> str:
    """Return the map in which HAProxy looks up the bucket of a duration.

    Its one quick lookup by ranges is that of IPv4 addresses, which are numbers.
    """
    lines = []
    for index, bucket in enumerate(BUCKETS):
        first, last = (ipaddress.IPv4Address(end // UNIT) for end in (bucket.low, bucket.high))
        lines += [f"{network} {index}\n" for network in ipaddress.summarize_address_range(first, last)]
    return "".join(lines)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Estimate a quantile.

    Args:
        counts: How many durations fell into each of `BUCKETS`.
        share: Which quantile, for example 0.95.

    Returns:
        Milliseconds, exact to the width of a bucket (half its value at most); None without any duration.
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted, seen = share * total, 0
    for bucket, count in zip(BUCKETS, counts, strict=True):
        if count and seen + count >= wanted:
            within = max(0.0, wanted - seen) / count
            return (bucket.low + within * (_end(bucket) - bucket.low)) / 1000
        seen += count
    return _end(BUCKETS[-1]) / 1000


def mean(counts: Sequence[int]) -> float | None:
    """Estimate the mean of durations.

    Args:
        counts: How many durations fell into each of `BUCKETS`.

    Returns:
        Milliseconds, from the middles of the buckets; None without any duration.
    """
    total = sum(counts)
    if total == 0:
        return None
    middles = ((bucket.low + _end(bucket)) / 2 for bucket in BUCKETS)
    return sum(middle * count for middle, count in zip(middles, counts, strict=True)) / total / 1000


def _end(bucket: Bucket) -> float:
    return min(bucket.high + 1, bucket.low * _RATIO or bucket.high + 1)
