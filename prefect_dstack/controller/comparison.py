"""What a canary and the revision beside it did, on the gateway's own figures."""

from __future__ import annotations

import time

from prefect_dstack.configurations import Canary
from prefect_dstack.domain.canary import Figures, Verdict, judge
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways import latency
from prefect_dstack.gateways.observation import ReplicaStatistics
from prefect_dstack.infrastructure.gateways import ManagedGateway

__all__ = ["Comparison"]

# A gateway that starts again, or whose host does, may be silent for so many seconds.
SILENCE = 60.0


class Comparison:
    """What two revisions did since a comparison began, on the gateway's own figures.

    Args:
        gateway: The gateway.
        service: The service.
        old: The revision that served before.
        new: The canary.
    """

    def __init__(self, gateway: ManagedGateway, service: str, old: int, new: int) -> None:
        self.gateway = gateway.control
        self.service, self.old, self.new = service, old, new
        self._seen = self.gateway.statistics(service)
        self._sums = {revision: _Sum() for revision in (old, new)}
        self._answered = time.monotonic()
        self._broken = ""

    def look(self) -> tuple[Figures, Figures]:
        """Return the figures so far; a gateway counts anew after each reload, so differences are added up.

        Returns:
            The figures of the old revision and those of the canary.

        Raises:
            GatewayError: If the gateway has been silent for a minute.
        """
        try:
            now = self.gateway.statistics(self.service)
            health = self.gateway.replica_health(self.service)
        except GatewayError:
            if time.monotonic() - self._answered > SILENCE:
                raise
        else:
            self._answered = time.monotonic()
            for name, counted in now.items():
                if _revision_of(name) in self._sums:
                    before = self._seen.get(name)
                    self._sums[_revision_of(name)].add(counted.since(before) if before else counted)
            self._seen = now
            canaries = [found for name, found in health.items() if _revision_of(name) == self.new]
            down = [found.check for found in canaries if found.status == "DOWN"]
            self._broken = down[0] or "no answer" if down and len(down) == len(canaries) else ""
        return self._sums[self.old].figures(), self._sums[self.new].figures()

    def judge(self, terms: Canary, *, over: bool) -> Verdict:
        """Read the counters again, and decide.

        Args:
            terms: How much worse the canary may be.
            over: Whether the time for comparing is up.

        Returns:
            What is to be done.
        """
        old, new = self.look()
        if self._broken:
            return Verdict(
                decision="reject", reason=f"the gateway cannot use the canary any more: {self._broken}"
            )
        return judge(old, new, terms, over=over)


class _Sum:
    """What all replicas of one revision did, over all reloads of the gateway."""

    def __init__(self) -> None:
        self.requests = self.failed = 0
        self.durations = [0] * len(latency.BUCKETS)

    def add(self, counted: ReplicaStatistics) -> None:
        unanswered = counted.connection_errors + counted.response_errors
        self.requests += counted.requests + unanswered
        self.failed += counted.server_errors + unanswered
        self.durations = [sum(both) for both in zip(self.durations, counted.durations, strict=True)]

    def figures(self) -> Figures:
        return Figures(requests=self.requests, failed=self.failed, p95=latency.quantile(self.durations, 0.95))


def _revision_of(name: str) -> int:
    return int(name.rsplit("-", 2)[1])
