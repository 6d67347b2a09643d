"""What a fault may cost the clients of a service, and what they are owed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.clients import Failure

EVERY_METHOD = ("GET", "POST")


@dataclass
class Cost:
    """Failures that a fault excuses.

    Attributes:
        service: Whose requests; empty: those of all.
        begins: From when on.
        lasts: For so many seconds, from the end of what changed the service meanwhile; infinite: until
            somebody has repaired it.
        methods: Which requests.
        most: How many of them.
        ends: Until when, once that is known.
    """

    service: str
    begins: float
    lasts: float
    methods: tuple[str, ...] = EVERY_METHOD
    most: float = math.inf
    ends: float = math.inf

    def takes(self, failure: Failure) -> bool:
        """Return whether it excuses a failure, and count it."""
        fits = (
            self.service in ("", failure.service)
            and failure.method in self.methods
            and failure.began <= self.ends
            and failure.ended >= self.begins
            and self.most > 0
        )
        self.most -= fits
        return fits


class Ledger:
    """When each service was to answer, and which failures are excused meanwhile."""

    def __init__(self) -> None:
        self.costs: list[Cost] = []
        self._wanted: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def stops(self, service: str, at: float) -> None:
        """Note that a service need not answer any more."""
        if self._is_wanted(service):
            began, _ = self._wanted[service].pop()
            self._wanted[service].append((began, at))

    def succeeded(self, service: str, began: float, at: float, *, serves: bool, repairs: bool) -> None:
        """Note that something was done.

        Args:
            service: Which service it concerned; empty: all of them.
            began: When it began.
            at: When it was done.
            serves: Whether the service is to answer from now on.
            repairs: Whether that ends what a fault before it has cost; that of one in its midst goes on.
        """
        if serves and not self._is_wanted(service):
            self._wanted[service].append((at, math.inf))
        for cost in self.costs if repairs else ():
            concerned = service in ("", cost.service) or not cost.service
            if cost.ends == math.inf and cost.begins < began and concerned:
                cost.ends = at

    def turn_ends(self, at: float) -> None:
        """Note that nothing changes any service now: what passes by itself does so from now on."""
        for cost in self.costs:
            cost.ends = min(cost.ends, at + cost.lasts)

    def is_harmed(self, service: str, at: float) -> bool:
        """Return whether a service suffers from a fault at a time."""
        return any(cost.service in ("", service) and cost.begins <= at <= cost.ends for cost in self.costs)

    def unexcused(self, failures: Iterable[Failure]) -> list[Failure]:
        """Pick the failures that no fault had to cost."""
        return [
            failure
            for failure in failures
            if self._was_wanted(failure) and not any(cost.takes(failure) for cost in self.costs)
        ]

    def _is_wanted(self, service: str) -> bool:
        return bool(self._wanted[service]) and self._wanted[service][-1][1] == math.inf

    def _was_wanted(self, failure: Failure) -> bool:
        return any(
            began <= failure.began and failure.ended <= ended
            for began, ended in self._wanted[failure.service]
        )
