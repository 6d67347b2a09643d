"""Whether a new revision that gets a share of the traffic does no worse than the old one: a decision."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.configurations import Canary

__all__ = ["Figures", "Step", "Verdict", "judge", "replicas_for", "steps_of", "weights_for"]

# With fewer requests, one failure more or less decides.
ENOUGH_REQUESTS = 20
# Before the time is up, so many failures are needed, and the doubt must be smaller than three sigma.
FAILURES_TO_ABORT = 3
SIGMAS = 3.0
# Differences of a few milliseconds are the gateway's and the machine's, not the revision's.
LATENCY_NOISE_MS = 5.0
HEAVIEST = 256


class Step(BaseModel):
    """A part of a canary: one share of the requests, for some time."""

    model_config = ConfigDict(frozen=True)

    weight: float = Field(
        gt=0, lt=100, description="The share of the requests that the canary gets, in percent."
    )
    duration: int = Field(ge=0, description="For how many seconds it is compared.")
    replicas: int = Field(ge=1, description="How many replicas it has.")


class Figures(BaseModel):
    """What the gateway has counted for one revision while both served."""

    model_config = ConfigDict(frozen=True)

    requests: int = Field(default=0, ge=0, description="Requests that it got.")
    failed: int = Field(default=0, ge=0, description="How many of them it failed.")
    p95: float | None = Field(
        default=None, description="Milliseconds within which 95 % of its answers began; None: no answer."
    )

    @property
    def error_rate(self) -> float:
        """The percentage of its requests that it failed; 0 without any."""
        return 100 * self.failed / self.requests if self.requests else 0.0

    def __str__(self) -> str:
        latency = "" if self.p95 is None else f", p95 {self.p95:.0f} ms"
        return f"{self.requests} requests, {self.error_rate:.1f} % failed{latency}"


class Verdict(BaseModel):
    """What is to be done with a canary."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["wait", "promote", "reject", "unsure"] = Field(
        description="`wait`: go on comparing; `promote`: it is as good as the old revision; `reject`: it is "
        "not; `unsure`: the time is up, and there were too few requests to tell."
    )
    reason: str = Field(default="", description="Why it is not promoted.")


def steps_of(terms: Canary, old: int, wanted: int, room: int) -> tuple[Step, ...]:
    """Decide which shares of the requests a canary gets, for how long, and on how many replicas.

    Args:
        terms: Its shares.
        old: How many replicas the old revision has.
        wanted: How many the new one shall have in the end.
        room: How many may be added.

    Returns:
        Its steps; one if the terms have a single share.

    Example:
        >>> steps = steps_of(Canary(steps=["10%", "50%"], pause="5m"), 3, 3, 3)
        >>> [(step.weight, step.duration, step.replicas) for step in steps]
        [(10.0, 300, 1), (50.0, 300, 3)]
    """
    return tuple(
        Step(
            weight=weight,
            duration=_duration(terms),
            replicas=replicas_for(weight, old, wanted, room),
        )
        for weight in terms.steps or (terms.weight,)
    )


def judge(old: Figures, new: Figures, terms: Canary, *, over: bool) -> Verdict:
    """Compare a canary with the revision that served before.

    Args:
        old: What the old revision did meanwhile.
        new: What the canary did.
        terms: How much worse it may be.
        over: Whether the time for comparing is up; before, it is only rejected if there is no doubt.

    Returns:
        What is to be done.

    Example:
        >>> judge(Figures(requests=900), Figures(requests=100, failed=50), Canary(), over=False).decision
        'reject'
    """
    allowed = old.error_rate + terms.max_error_rate
    certain = new.failed >= FAILURES_TO_ABORT and _at_least(new) > allowed
    enough = new.requests >= ENOUGH_REQUESTS
    if certain or (over and enough and new.error_rate > allowed):
        return Verdict(
            decision="reject",
            reason=f"the canary failed {new.error_rate:.1f} % of {new.requests} requests, "
            f"the old revision {old.error_rate:.1f} % of {old.requests}; "
            f"{terms.max_error_rate:g} % more are allowed",
        )
    if not over:
        return Verdict(decision="wait")
    if not enough:
        keys = "'steps' or 'pause'" if terms.steps else "'weight' or 'duration'"
        return Verdict(
            decision="unsure",
            reason=f"the canary got {new.requests} requests in {_duration(terms)} s, too few to compare "
            f"({ENOUGH_REQUESTS} at least): raise {keys}, or decide with 'promote: manual'",
        )
    if old.requests >= ENOUGH_REQUESTS and old.p95 is not None and new.p95 is not None:
        slowest = max(old.p95 * terms.max_latency_p95_ratio, old.p95 + LATENCY_NOISE_MS)
        if new.p95 > slowest:
            return Verdict(
                decision="reject",
                reason=f"the canary's p95 latency was {new.p95:.0f} ms, the old revision's {old.p95:.0f} ms; "
                f"{terms.max_latency_p95_ratio:g} times as much is allowed",
            )
    return Verdict(decision="promote")


def replicas_for(weight: float, old: int, wanted: int, room: int) -> int:
    """Decide how many replicas a canary has, so that none gets more requests than an old one does.

    Args:
        weight: The canary's share of the requests, in percent.
        old: How many replicas the old revision has.
        wanted: How many the new one shall have in the end.
        room: How many may be added, or taken from the old ones.

    Returns:
        Their number, at least 1.
    """
    fair = math.ceil(weight * old / (100 - weight))
    return max(1, min(fair, wanted, room))


def weights_for(weight: float, old: int, new: int) -> tuple[int, int]:
    """Find the weights with which a canary gets its share.

    Args:
        weight: The canary's share of the requests, in percent.
        old: How many replicas the old revision has.
        new: How many the canary has.

    Returns:
        The weight of each old replica and that of each new one, from 1 to 256.

    Example:
        >>> weights_for(10, 1, 1)
        (252, 28)
    """
    ratio = weight * old / ((100 - weight) * new)
    heaviest = range(HEAVIEST // 2, HEAVIEST + 1)
    if ratio <= 1:
        pairs = [(heavy, max(1, round(heavy * ratio))) for heavy in heaviest]
    else:
        pairs = [(max(1, round(heavy / ratio)), heavy) for heavy in heaviest]
    return min(pairs, key=lambda pair: (abs(pair[1] / pair[0] - ratio), -max(pair)))


def _duration(terms: Canary) -> int:
    return terms.pause if terms.steps else terms.duration


def _at_least(figures: Figures) -> float:
    """Return the lower end of the Wilson interval of an error rate, in percent."""
    share, count = figures.failed / figures.requests, figures.requests
    square = SIGMAS**2 / count
    middle = share + square / 2
    reach = SIGMAS * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return 100 * (middle - reach) / (1 + square)
