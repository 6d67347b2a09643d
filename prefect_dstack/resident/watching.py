"""What a controller has seen of the services, and what it makes of that."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.autoscaling import Decision, Load, Sample, ScalingTerms, decide
from prefect_dstack.domain.record import Revision, ServiceRecord, now
from prefect_dstack.domain.replacement import replica_to_replace
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.gateways.observation import ReplicaStatistics
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure

__all__ = ["HungReplica", "ScalingChange", "ServiceWatch", "scaling_terms"]

logger = logging.getLogger(__name__)

# So many seconds are remembered beyond the longest delay.
SPARE = 30.0
SCRAPE_TIMEOUT = 2.0


@dataclass(frozen=True)
class ScalingChange:
    """A service that is to have another number of replicas.

    Attributes:
        service: The service.
        before: How many are wanted now.
        replicas: How many are to be wanted.
        reason: Why, in one line.
    """

    service: str
    before: int
    replicas: int
    reason: str


@dataclass(frozen=True)
class HungReplica:
    """A replica that is to be replaced.

    Attributes:
        service: The service.
        replica: The name of the replica.
        reason: Why, in one line.
    """

    service: str
    replica: str
    reason: str


def scaling_terms(configuration: ServiceConfiguration) -> ScalingTerms | None:
    """Return when replicas of a service are added and removed; None if their number is fixed.

    Args:
        configuration: The service.
    """
    allowed, scaling = configuration.replica_range, configuration.scaling
    if allowed.fixed or scaling is None:
        return None
    least = allowed.min or 0
    return ScalingTerms(
        metric=scaling.metric,
        target=float(scaling.target),
        least=least,
        most=allowed.max or least,
        window=float(scaling.window or ScalingTerms.window),
        up_delay=float(scaling.scale_up_delay),
        down_delay=float(scaling.scale_down_delay),
    )


class ServiceWatch:
    """The recent loads of one service.

    Args:
        record: The record of the service.
        clock: Seconds, by a clock that only goes forward.
    """

    def __init__(self, record: ServiceRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self.record = record
        self._clock = clock
        self._history: deque[Sample] = deque()
        self._statistics: dict[str, ReplicaStatistics] = {}
        self._revision: Revision | None = None
        self._configuration: ServiceConfiguration | None = None
        self._terms: ScalingTerms | None = None
        self.update(record)

    def update(self, record: ServiceRecord) -> None:
        """Go on with a newer record.

        Args:
            record: The record.
        """
        self.record = record
        active = record.active_revision
        if active is self._revision or (
            active is not None and self._revision is not None and active == self._revision
        ):
            return
        self._revision = active
        self._configuration, self._terms = None, None
        if active is not None:
            loaded = load_configuration(active.configuration, name=record.name, directory=active.directory)
            if isinstance(loaded, ServiceConfiguration):
                self._configuration, self._terms = loaded, scaling_terms(loaded)

    @property
    def is_scaled(self) -> bool:
        """Whether the number of its replicas follows its load."""
        desired = self.record.desired
        return self._terms is not None and self.record.active is not None and not (desired and desired.pinned)

    @property
    def replaces_hung(self) -> bool:
        """Whether its replicas are replaced when they have stopped answering."""
        configuration = self._configuration
        return configuration is not None and configuration.restart_after is not None

    def hung(self, gateway: ManagedGateway) -> HungReplica | None:
        """Return the replica that is to be replaced by now; None if none is.

        Args:
            gateway: The gateway in front of the service, which asks the probe again and again.
        """
        configuration = self._configuration
        if configuration is None or configuration.restart_after is None:
            return None
        try:
            health = gateway.control.replica_health(self.record.name)
        except PrefectDstackError as error:
            logger.debug("%s: its gateway says nothing of its replicas: %s", self.record.name, error)
            return None
        wanted = self.record.wanted_names
        failing = {name: it for name, it in health.items() if it.status == "DOWN" and name in wanted}
        chosen = replica_to_replace(
            {name: it.since for name, it in failing.items()},
            self.record.replacements,
            float(configuration.restart_after),
            now(),
        )
        if chosen is None:
            return None
        found = failing[chosen]
        reason = f"its probe has failed for {found.since:.0f} s: {found.check or 'no answer'}"
        return HungReplica(self.record.name, chosen, reason)

    def look(self, gateway: ManagedGateway, infrastructure: Infrastructure) -> None:
        """Return the load of the service as the gateway counts it.

        Args:
            gateway: The gateway in front of it.
            infrastructure: Where its replicas are, for metrics of their own.
        """
        try:
            counted = gateway.control.load(self.record.name)
        except PrefectDstackError as error:
            logger.debug("%s: its gateway does not say what it bears: %s", self.record.name, error)
            return
        latency = None
        if self._terms is not None and self._terms.metric == "latency_p95":
            latency = self._latency(gateway)
        metric = None
        if self._terms is not None and self._terms.metric == "prometheus" and self._configuration is not None:
            metric = _scraped(self._configuration, self.record, infrastructure)
        load = Load(
            requests=counted.requests,
            in_flight=counted.in_flight,
            queued=counted.queued,
            held=counted.held,
            latency_p95=latency,
            metric=metric,
        )
        now = self._clock()
        self._history.append(Sample(now, load, counted.process, self.record.wanted_replicas))
        longest = 0.0 if self._terms is None else max(self._terms.up_delay, self._terms.down_delay)
        window = 0.0 if self._terms is None else self._terms.window
        while self._history and self._history[0].at < now - longest - window - SPARE:
            self._history.popleft()

    def _latency(self, gateway: ManagedGateway) -> float | None:
        """Return the seconds within which 95 % of the answers since the last look began."""
        try:
            now = gateway.control.statistics(self.record.name)
        except PrefectDstackError:
            return None
        before, self._statistics = self._statistics, now
        recent = [it.since(before[name]) if name in before else it for name, it in now.items()]
        slowest = [it.p95 for it in recent if it.p95 is not None]
        return max(slowest) / 1000 if slowest else None

    def change(self) -> ScalingChange | None:
        """Return what is to change by now; None if nothing is."""
        if self._terms is None or not self.is_scaled:
            return None
        before = self.record.wanted_replicas
        decision: Decision = decide(tuple(self._history), self._terms, before)
        if decision.replicas == before:
            return None
        return ScalingChange(self.record.name, before, decision.replicas, decision.reason)


def _scraped(
    configuration: ServiceConfiguration, record: ServiceRecord, infrastructure: Infrastructure
) -> float | None:
    """Return the sum of a metric over the replicas, which each publish it at `/metrics`."""
    scaling = configuration.scaling
    if scaling is None or scaling.query is None:
        return None
    values = []
    for found in infrastructure.observe(record.name, record.runtimes).found:
        url = f"http://{found.replica.address}:{found.replica.port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT) as answer:
                values.append(
                    metric_value(answer.read().decode(errors="replace").splitlines(), scaling.query)
                )
        except OSError as error:
            logger.debug("%s: its metrics cannot be read: %s", found.replica.name, error)
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def metric_value(lines: Iterable[str], name: str) -> float | None:
    """Read a metric from the text format of Prometheus.

    Args:
        lines: What `/metrics` answers.
        name: The metric, such as `vllm:num_requests_waiting`; its labels are summed up.

    Returns:
        Its value; None if it is not there.
    """
    found = []
    for line in lines:
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0].strip() == name:
            try:
                found.append(float(value))
            except ValueError:
                continue
    return sum(found) if found else None
