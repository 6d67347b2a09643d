"""How many replicas a service needs for its load: a decision with a history, and no I/O.

The load is that of the whole service; the target is what one replica is to bear. A number is only left when
it was too low, or too high, for a whole delay: a wave shorter than that moves nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Decision", "Load", "Sample", "ScalingTerms", "decide", "needed"]

# Differences of less than this share of the target move nothing: measuring is not exact.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """What a service had to bear at one moment, as the gateway counted it.

    Attributes:
        requests: Requests that have begun since the gateway's process started.
        in_flight: Requests that replicas work on.
        queued: Requests that wait for a replica with room.
        held: Requests that wait for the first replica.
        latency_p95: Seconds within which 95 % of the answers began lately; None: not measured.
        metric: The value of a metric of the replicas, all together; None: not measured.
    """

    requests: int = 0
    in_flight: int = 0
    queued: int = 0
    held: int = 0
    latency_p95: float | None = None
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A load and when it was seen.

    Attributes:
        at: Seconds, by any clock that only goes forward.
        load: The load.
        process: Which process of the gateway counted; another one has begun anew.
        replicas: How many replicas were wanted then.
    """

    at: float
    load: Load
    process: int = 0
    replicas: int = 1


@dataclass(frozen=True)
class ScalingTerms:
    """When replicas are added and removed.

    Attributes:
        metric: rps, concurrency, queue, latency_p95 or prometheus.
        target: The value that one replica is to have.
        least: The fewest replicas.
        most: The most replicas.
        window: Seconds over which the metric is averaged.
        up_delay: Seconds for which there must be too few before some are added.
        down_delay: Seconds for which there must be too many before some are removed.
    """

    metric: str
    target: float
    least: int
    most: int
    window: float = 15.0
    up_delay: float = 0.0
    down_delay: float = 600.0


@dataclass(frozen=True)
class Decision:
    """How many replicas there are to be, and why.

    Attributes:
        replicas: Their number; the present one if nothing is to change.
        reason: Why it changes, in one line; empty if it does not.
    """

    replicas: int
    reason: str = ""


def decide(history: Sequence[Sample], terms: ScalingTerms, current: int) -> Decision:
    """Decide how many replicas a service is to have.

    Args:
        history: What was seen, the oldest first; all of the longer of the two delays and a window. If it
            begins later, nothing changes before the load of a whole delay is known.
        terms: When replicas are added and removed.
        current: How many are wanted now.

    Returns:
        The number, within the bounds.

    Example:
        >>> busy = [Sample(at, Load(in_flight=31)) for at in (0.0, 1.0, 2.0)]
        >>> decide(busy, ScalingTerms("concurrency", 8, 1, 8), 2)
        Decision(replicas=4, reason='31 in flight, target 8')
    """
    bounded = min(max(current, terms.least), terms.most)
    if bounded != current:
        return Decision(bounded, f"from {terms.least} to {terms.most} replicas are allowed")
    if not history:
        return Decision(current)
    now = history[-1].at
    if current == 0:
        held = history[-1].load.held
        return Decision(max(1, terms.least), f"{held} held") if held else Decision(0)
    since = now - terms.up_delay
    # Who has begun to look does not know yet what the load was before.
    if history[0].at <= since and (up := _all(_needs(history, terms, since), lambda it: it > current)):
        return Decision(min(up), _reason(history, terms))
    since = now - terms.down_delay
    if history[0].at > since or current <= terms.least:
        return Decision(current)
    if terms.least == 0 and _is_idle(history, since):
        return Decision(0, f"no request for {terms.down_delay:g} s")
    # A request between two looks is in no average: only a time without any ends the last replica.
    needs = (max(count, 1) for count in _needs(history, terms, since))
    if down := _all(needs, lambda it: it < current):
        return Decision(max(down), _reason(history, terms))
    return Decision(current)


def needed(value: float, terms: ScalingTerms, replicas: int) -> int:
    """Return how many replicas a value asks for.

    Args:
        value: The metric of the whole service; of `latency_p95`, that of the service as it is.
        terms: The target and the bounds.
        replicas: How many there were when it was measured.

    Returns:
        A number within the bounds.
    """
    if terms.metric == "latency_p95":
        ratio = value / terms.target
        near = abs(ratio - 1) <= TOLERANCE
        count = replicas if near else math.ceil(max(replicas, 1) * ratio)
        # Half as slow is not half as many: what waits nowhere is fast with any number.
        count = max(count, replicas - 1)
    else:
        count = math.ceil(value / terms.target - TOLERANCE)
    return min(max(count, terms.least), terms.most)


def _needs(history: Sequence[Sample], terms: ScalingTerms, since: float) -> Iterator[int]:
    """Yield how many replicas each look since a moment asked for, and the one before that; the last first."""
    for number in range(len(history) - 1, -1, -1):
        value = _value(history, number, terms)
        if value is not None:
            yield needed(value, terms, history[number].replicas)
        if history[number].at <= since:
            return


def _all(counts: Iterable[int], test: Callable[[int], bool]) -> list[int]:
    """Return all of them, or none if one does not pass: most often the first, and no other is looked at."""
    found = []
    for count in counts:
        if not test(count):
            return []
        found.append(count)
    return found


def _is_idle(history: Sequence[Sample], since: float) -> bool:
    """Return whether no request has begun, or was open, since a moment."""
    first = max((number for number, sample in enumerate(history) if sample.at <= since), default=0)
    seen = history[first:]
    if any(sample.load.in_flight + sample.load.queued + sample.load.held for sample in seen):
        return False
    return not _begun(seen)


def _value(history: Sequence[Sample], number: int, terms: ScalingTerms) -> float | None:
    """Return the metric as it was at one look, over the window before that."""
    first = number
    while first and history[first - 1].at >= history[number].at - terms.window:
        first -= 1
    window = history[first : number + 1]
    loads = [sample.load for sample in window]
    if terms.metric == "rps":
        return _rate(window)
    if terms.metric == "concurrency":
        return sum(load.in_flight + load.queued + load.held for load in loads) / len(loads)
    if terms.metric == "queue":
        return sum(load.queued + load.held for load in loads) / len(loads)
    if terms.metric == "latency_p95":
        known = [load.latency_p95 for load in loads if load.latency_p95 is not None]
    else:
        known = [load.metric for load in loads if load.metric is not None]
    return sum(known) / len(known) if known else None


def _rate(window: Sequence[Sample]) -> float | None:
    """Return the requests per second."""
    seconds = window[-1].at - window[0].at
    if seconds <= 0:
        return None
    return _begun(window) / seconds


def _begun(history: Sequence[Sample]) -> int:
    """Return how many requests have begun, over reloads of the gateway, each of which counts anew."""
    requests = 0
    for before, after in itertools.pairwise(history):
        same = before.process == after.process
        requests += max(0, after.load.requests - before.load.requests) if same else after.load.requests
    return requests


def _reason(history: Sequence[Sample], terms: ScalingTerms) -> str:
    values = (_value(history, number, terms) for number in range(len(history) - 1, -1, -1))
    value = next((value for value in values if value is not None), 0.0)
    what = {
        "rps": f"{value:.3g} requests/s",
        "concurrency": f"{value:.3g} in flight",
        "queue": f"{value:.3g} waiting",
        "latency_p95": f"p95 {value * 1000:.0f} ms",
    }.get(terms.metric, f"{terms.metric} {value:.3g}")
    target = f"{terms.target * 1000:.0f} ms" if terms.metric == "latency_p95" else f"{terms.target:g}"
    return f"{what}, target {target}"
