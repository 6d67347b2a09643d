"""The recent load of the replicas of a service, or of one group of them, and how many it asks for."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from prefect_dstack.configurations import CountRange, Scaling, ServiceConfiguration
from prefect_dstack.domain.autoscaling import Decision, Load, Sample, ScalingTerms, decide
from prefect_dstack.domain.groups import group_name, router_group
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.gateways.look import GatewayLook
from prefect_dstack.gateways.observation import ReplicaStatistics
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure

__all__ = ["GroupLoad", "ScalingChange", "scaled_groups"]

logger = logging.getLogger(__name__)

# So many seconds are remembered beyond the longest delay.
SPARE = 30.0
SCRAPE_TIMEOUT = 2.0
# Seconds between two looks; nobody looks at a service while it is deployed or pinned.
GAP = 15.0


@dataclass(frozen=True)
class ScalingChange:
    """A service, or a group of its replicas, that is to have another number of replicas.

    Attributes:
        service: The service.
        before: How many are wanted now.
        replicas: How many are to be wanted.
        reason: Why, in one line.
        group: The group; None: the service has none.
    """

    service: str
    before: int
    replicas: int
    reason: str
    group: str | None = None

    def __str__(self) -> str:
        name = self.service if self.group is None else f"{self.service}/{self.group}"
        return f"{name} {self.before} → {self.replicas}: {self.reason}"


def scaled_groups(
    configuration: ServiceConfiguration, clock: Callable[[], float] = time.monotonic
) -> list[GroupLoad]:
    """Return what of a service follows its load: each group that has a range of replicas, or all of them.

    Args:
        configuration: The service.
        clock: Seconds, by a clock that only goes forward.
    """
    found: list[tuple[str | None, CountRange, Scaling | None]] = [
        (name, group.range, group.scaling)
        for name, group in zip(configuration.group_names, configuration.replica_groups, strict=True)
    ]
    found = found or [(None, configuration.replica_range, configuration.scaling)]
    # Clients' requests go to the router alone: to the others, all of them are theirs.
    routed = router_group(configuration) is not None
    return [
        GroupLoad(name, _terms(allowed, scaling), scaling.query, routed=routed, clock=clock)
        for name, allowed, scaling in found
        if scaling is not None and not allowed.fixed
    ]


def _terms(allowed: CountRange, scaling: Scaling) -> ScalingTerms:
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


class GroupLoad:
    """The recent load of a service, or of one of its groups.

    Args:
        group: The group; None: the service has none.
        terms: When replicas are added and removed.
        query: The metric of the replicas, if it is one of theirs.
        routed: Whether the requests of the whole service count, as a router spreads them.
        clock: Seconds, by a clock that only goes forward.
    """

    def __init__(
        self,
        group: str | None,
        terms: ScalingTerms,
        query: str | None,
        *,
        routed: bool,
        clock: Callable[[], float],
    ) -> None:
        self.group, self.terms, self._query = group, terms, query
        self._routed, self._clock = routed, clock
        self._history: deque[Sample] = deque()
        self._statistics: Mapping[str, ReplicaStatistics] = {}

    def look(
        self,
        record: ServiceRecord,
        seen: GatewayLook,
        gateway: ManagedGateway,
        infrastructure: Infrastructure,
    ) -> None:
        """Note the load as the gateway counts it.

        Args:
            record: The record of the service.
            seen: What the gateway in front of it has shown.
            gateway: That gateway, for what is asked of few services only.
            infrastructure: Where its replicas are, for metrics of their own.
        """
        apart = self.group is not None and not self._routed
        counted = seen.load(record.name, self._replicas(record) if apart else None)
        try:
            latency = self._latency(record, gateway) if self.terms.metric == "latency_p95" else None
        except PrefectDstackError as error:
            logger.debug("%s: its gateway does not say how long it takes: %s", record.name, error)
            return
        metric = None
        if self.terms.metric == "prometheus" and self._query is not None:
            metric = _scraped(self._query, record, infrastructure, self._replicas(record))
        load = Load(
            requests=counted.requests,
            in_flight=counted.in_flight,
            queued=counted.queued,
            held=counted.held,
            latency_p95=latency,
            metric=metric,
        )
        if self._history and self._history[-1].load == load:
            load = self._history[-1].load  # many services that do nothing need not remember it so often
        now = self._clock()
        if self._history and now - self._history[-1].at > GAP:
            self._history.clear()  # what was before says nothing of the load since
        self._history.append(Sample(now, load, counted.process, self._wanted(record)))
        longest = max(self.terms.up_delay, self.terms.down_delay)
        while self._history[0].at < now - longest - self.terms.window - SPARE:
            self._history.popleft()

    def change(self, record: ServiceRecord) -> ScalingChange | None:
        """Return what is to change by now; None if nothing is.

        Args:
            record: The record of the service.
        """
        before = self._wanted(record)
        decision: Decision = decide(tuple(self._history), self.terms, before)
        if decision.replicas == before:
            return None
        return ScalingChange(record.name, before, decision.replicas, decision.reason, self.group)

    def _wanted(self, record: ServiceRecord) -> int:
        if self.group is None:
            return record.wanted_replicas
        return 0 if record.desired is None else record.desired.groups.get(self.group, 0)

    def _replicas(self, record: ServiceRecord) -> frozenset[str]:
        """Return the names of its replicas; all of the service's if it has no groups."""
        active = record.active_revision
        if self.group is None or active is None:
            return record.wanted_names
        return frozenset(
            f"{record.name}-{active.replicas_of}-{number}"
            for number in record.wanted_numbers
            if group_name(active.groups, number) == self.group
        )

    def _latency(self, record: ServiceRecord, gateway: ManagedGateway) -> float | None:
        """Return the seconds within which 95 % of the answers since the last look began."""
        mine = self._replicas(record)
        now = gateway.control.statistics(record.name)
        before, self._statistics = self._statistics, now
        counted = (
            now if self.group is None or self._routed else {name: now[name] for name in now if name in mine}
        )
        recent = [it.since(before[name]) if name in before else it for name, it in counted.items()]
        slowest = [it.p95 for it in recent if it.p95 is not None]
        return max(slowest) / 1000 if slowest else None


def _scraped(
    query: str, record: ServiceRecord, infrastructure: Infrastructure, replicas: Collection[str]
) -> float | None:
    """Return the sum of a metric over some replicas, which each publish it at `/metrics`."""
    values = []
    for found in infrastructure.observe(record.name, record.runtimes).found:
        if found.replica.name not in replicas:
            continue
        url = f"http://{found.replica.address}:{found.replica.port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT) as answer:
                values.append(metric_value(answer.read().decode(errors="replace").splitlines(), query))
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
