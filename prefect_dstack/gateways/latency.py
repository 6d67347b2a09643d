"""How long replicas take, from counters that HAProxy keeps in buckets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BUCKETS", "Bucket", "mean", "quantile"]

FINEST_MICROSECONDS = 500
RATIO = 1.5
COUNT = 30


@dataclass(frozen=True)
class Bucket:
    """A range of durations in microseconds, both ends included."""

    low: int
    high: int


def _buckets() -> tuple[Bucket, ...]:
    edges = [0, *(round(FINEST_MICROSECONDS * RATIO**index) for index in range(COUNT - 1)), 2**53]
    return tuple(Bucket(low, high - 1) for low, high in itertools.pairwise(edges))


BUCKETS = _buckets()


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
    return min(bucket.high + 1, bucket.low * RATIO or FINEST_MICROSECONDS)
