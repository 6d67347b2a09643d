"""Tasks on canaries: give one a share of the traffic, and compare it with the revision that served before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from prefect_dstack.configurations import Canary
from prefect_dstack.domain.canary import Figures, Verdict, judge
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways import latency
from prefect_dstack.gateways.observation import ReplicaStatistics
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.tasks import gateway_places
from prefect_dstack.tasks.gateways import EVEN_WEIGHT
from prefect_dstack.tasks.retrying import may_help

__all__ = ["Comparison", "share_traffic", "watch_canary"]

LONGEST_PAUSE = 5.0
REPORT_INTERVAL = 30.0
# A gateway that starts again, or whose host does, may be silent for so many seconds.
SILENCE = 60.0


@task(
    name="share-traffic",
    task_run_name="share-traffic {service}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=may_help,
)
def share_traffic(gateway_name: str, service: str, weights: Mapping[int, int]) -> None:
    """Set the weights of replicas, by their revision, and count what each does while they differ.

    Args:
        gateway_name: The gateway.
        service: The service.
        weights: The weight of each replica by revision; the usual one for those of other revisions. None
            at all ends the comparison.
    """

    def shared(state: GatewayState) -> GatewayState:
        for name in state.route(service).replicas:
            state = state.with_weight(service, name, weights.get(_revision_of(name), EVEN_WEIGHT))
        return state.comparing(service, compared=bool(weights))

    gateway_places.gateway(gateway_name).change(shared)


class Comparison:
    """What two revisions did since a comparison began, on the gateway's own figures.

    Args:
        gateway_name: The gateway.
        service: The service.
        old: The revision that served before.
        new: The canary.
    """

    def __init__(self, gateway_name: str, service: str, old: int, new: int) -> None:
        self.gateway = gateway_places.gateway(gateway_name)
        self.service, self.old, self.new = service, old, new
        self._seen = self.gateway.statistics(service)
        self._sums = {revision: _Sum() for revision in (old, new)}
        self._answered = time.monotonic()
        self._broken = ""

    def look(self) -> tuple[Figures, Figures]:
        """Look again; a gateway begins to count anew with each reload, so the difference is added up.

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
        """Look again, and decide.

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


@task(name="watch-canary", task_run_name="watch-canary {service}@{new}", cache_policy=NO_CACHE)
def watch_canary(gateway_name: str, service: str, old: int, new: int, terms: Canary) -> Verdict:
    """Compare a canary with the revision that served before, until the time is up or there is no doubt.

    Args:
        gateway_name: The gateway.
        service: The service.
        old: The revision that served before.
        new: The canary.
        terms: For how long, and how much worse it may be.

    Returns:
        What is to be done.
    """
    logger = get_run_logger()
    comparison = Comparison(gateway_name, service, old, new)
    start = told = time.monotonic()
    progress = create_progress_artifact(
        progress=0.0,
        key=f"{service}-canary-progress",
        description=f"{service}@{new} beside {service}@{old}, with {terms.weight:g} % of the requests",
        _sync=True,  # type: ignore[call-arg]
    )
    pause = min(LONGEST_PAUSE, max(terms.duration / 20, 0.1))
    while True:
        elapsed = time.monotonic() - start
        over = elapsed >= terms.duration
        verdict = comparison.judge(terms, over=over)
        if verdict.decision != "wait" or time.monotonic() - told >= REPORT_INTERVAL:
            told = time.monotonic()
            figures = comparison.look()
            logger.info(
                "%s@%d (old): %s; %s@%d (canary): %s", service, old, figures[0], service, new, figures[1]
            )
            done = 100.0 if verdict.decision != "wait" else 100 * elapsed / terms.duration
            update_progress_artifact(progress, progress=done, _sync=True)  # type: ignore[call-arg, arg-type]
        if verdict.decision != "wait":
            _publish(service, [old, new], comparison.look(), verdict)
            return verdict
        time.sleep(min(pause, max(terms.duration - elapsed, 0.0)))


def _publish(service: str, revisions: Sequence[int], figures: Sequence[Figures], verdict: Verdict) -> None:
    create_table_artifact(
        key=f"{service}-canary",
        table=[
            {
                "revision": f"{service}@{revision}",
                "requests": counted.requests,
                "failed": counted.failed,
                "failed, %": round(counted.error_rate, 2),
                "p95, ms": None if counted.p95 is None else round(counted.p95, 1),
            }
            for revision, counted in zip(revisions, figures, strict=True)
        ],
        description=f"The canary of {service}: {verdict.decision}. {verdict.reason}".strip(),
        _sync=True,  # type: ignore[call-arg]
    )


def _revision_of(name: str) -> int:
    return int(name.rsplit("-", 2)[1])
