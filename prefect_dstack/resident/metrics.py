"""Metrics of all services for Prometheus, from what their gateways count."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import ConflictError, PrefectDstackError
from prefect_dstack.gateways.counters import CODES, Ledger, ProcessSample
from prefect_dstack.gateways.latency import Durations
from prefect_dstack.gateways.runtime import Connection
from prefect_dstack.gateways.servers import SUCCESSOR
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.resident.serving import serving
from prefect_dstack.services.location import is_elsewhere

__all__ = ["GatewayMetrics", "MetricsServer"]

logger = logging.getLogger(__name__)

INTERVAL = 1.0
HOLD_TIMEOUT = 5.0
HOLD_AGE = 20.0
"""Seconds after which the connection that keeps a process is replaced; HAProxy closes it after 60."""
FORGOTTEN = 86_400.0
"""Seconds for which the counters of a replica that is gone are published."""
REPLICA = ("service", "revision", "replica")
COUNTERS = {
    "received": ("request_bytes", "Bytes of requests, headers included."),
    "sent": ("response_bytes", "Bytes of answers, headers included."),
    "retries": ("retries", "Requests that were tried again."),
    "connection_errors": ("connection_errors", "Connections to the replica that failed."),
    "response_errors": ("response_errors", "Requests that the replica took and did not answer."),
}


class GatewayMetrics:
    """What one gateway counts, sampled again and again.

    A reload of HAProxy starts a new process, which counts from 0. An open connection keeps the former one
    until it was asked for the last time, so that none of its requests is missing in the totals.

    Args:
        gateway: The gateway.
    """

    def __init__(self, gateway: ManagedGateway) -> None:
        self.gateway = gateway
        self.ledger = Ledger()
        self.samples: Sequence[ProcessSample] = ()
        self.up: bool | None = None  # not known yet
        self.lock = threading.Lock()
        self._holds: dict[int, tuple[float, Connection]] = {}
        self._idle: set[int] = set()
        self._last_seen: dict[tuple[str, str], float] = {}

    def sample(self) -> None:
        """Look once."""
        try:
            samples, departed = self.gateway.control.samples()
        except (PrefectDstackError, OSError) as error:
            logger.debug("gateway %s: its counters cannot be read: %s", self.gateway.name, error)
            self.up, self.samples = False, ()
            return
        with self.lock:
            self.ledger.take(samples, departed)
            self.samples, self.up = samples, True
            self._forget(samples)
        self._hold(samples)

    def close(self) -> None:
        """Release all processes."""
        for _, connection in self._holds.values():
            connection.close()
        self._holds.clear()

    def _hold(self, samples: Iterable[ProcessSample]) -> None:
        """Keep the present process; let go of former ones that have had nothing to do for two looks."""
        now = time.monotonic()
        idle = {one.process for one in samples if not one.current and one.idle}
        alive = {one.process for one in samples}
        for process in [it for it in self._holds if it not in alive or it in idle & self._idle]:
            self._holds.pop(process)[1].close()
        self._idle = idle
        for process in (one.process for one in samples if one.current):
            since, former = self._holds.get(process, (float("-inf"), None))
            if now - since < HOLD_AGE:
                continue
            try:
                self._holds[process] = (now, self.gateway.control.place.hold(HOLD_TIMEOUT))
            except (PrefectDstackError, OSError) as error:
                logger.debug("gateway %s: process %d is not kept: %s", self.gateway.name, process, error)
                continue
            if former is not None:
                former.close()

    def _forget(self, samples: Iterable[ProcessSample]) -> None:
        now = time.monotonic()
        for one in samples:
            for service, rows in one.replicas.items():
                self._last_seen.update(dict.fromkeys(((service, replica) for replica in rows), now))
            self._last_seen.update(dict.fromkeys(((service, "") for service in one.services), now))
        # What was gone before the first look.
        for key in self.ledger.durations:
            self._last_seen.setdefault(key, now)
        for key in [key for key, seen in self._last_seen.items() if now - seen > FORGOTTEN]:
            del self._last_seen[key]
            self.ledger.forget(*key)


class MetricsServer(Collector):
    """Answers Prometheus, and samples the gateways meanwhile.

    Args:
        address: The address to listen on.
        port: The TCP port to listen on.

    Raises:
        ConflictError: If the port is in use.
    """

    def __init__(self, address: str, port: int) -> None:
        self._gateways: dict[str, GatewayMetrics] = {}
        self._records: Sequence[ServiceRecord] = ()
        self._leads = False
        self._end = threading.Event()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            raise ConflictError(
                f"metrics cannot be published on {address}:{port}: {error.strerror or error}; choose another "
                "metrics_port"
            ) from error
        self._pool = ThreadPoolExecutor(16, "metrics")
        self._sampler = threading.Thread(target=self._sample, name="metrics", daemon=True)
        self._sampler.start()

    def follow(
        self, infrastructure: Infrastructure, records: Sequence[ServiceRecord], *, leads: bool
    ) -> None:
        """Go on with what is known now.

        Args:
            infrastructure: Where the gateways are.
            records: The records of the services.
            leads: Whether this controller leads.
        """
        # What is elsewhere cannot be seen from here, and is published there.
        self._records = [
            record
            for record in records
            if record.active is not None and not is_elsewhere(record, infrastructure.here)
        ]
        self._leads = leads
        followed: dict[str, GatewayMetrics] = {}
        for name in infrastructure.gateway_names:
            try:
                gateway = infrastructure.gateway(name)
            except PrefectDstackError as error:
                logger.debug("gateway %s: %s", name, error)
                continue
            followed[name] = self._gateways.get(name) or GatewayMetrics(gateway)
            followed[name].gateway = gateway
        for name in self._gateways.keys() - followed.keys():
            self._gateways[name].close()
        self._gateways = followed

    def close(self) -> None:
        """Stop sampling and answering."""
        self._end.set()
        self._sampler.join()
        self._pool.shutdown(wait=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for one in self._gateways.values():
            one.close()

    def _sample(self) -> None:
        under_way: dict[str, Future[None]] = {}
        while not self._end.wait(INTERVAL):
            for name, one in self._gateways.items():
                # One that does not answer in time does not hold up the others.
                if name not in under_way or under_way[name].done():
                    under_way[name] = self._pool.submit(_sampled, one)

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics as they are now."""
        gateways = dict(self._gateways)
        totals: dict[tuple[str, str], Counter[str]] = {}
        durations: dict[tuple[str, str], Durations] = {}
        held: Counter[str] = Counter()
        samples: list[ProcessSample] = []
        for one in gateways.values():
            with one.lock:
                samples += one.samples
                held.update(one.ledger.held)
                for key, counters in one.ledger.totals.items():
                    totals.setdefault(key, Counter()).update(counters)
                for key, its in one.ledger.durations.items():
                    durations.setdefault(key, Durations()).add(its)
        yield from _counted(totals, held)
        yield _timed(durations)
        yield from _measured(samples)
        unknown = {name for name, one in gateways.items() if one.up is None}
        yield from self._states(samples, unknown)
        up = GaugeMetricFamily(
            "prefect_dstack_gateway_up", "Whether the gateway answers.", labels=["gateway"]
        )
        needed = {record.gateway for record in self._records}
        for name, one in gateways.items():
            if one.up is not None and (name in needed or not one.gateway.implicit):
                up.add_metric([name], one.up)
        yield up

    def _states(self, samples: Sequence[ProcessSample], unknown: Collection[str]) -> Iterable[Metric]:
        """Yield how services are, apart from those behind gateways of which nothing is known yet."""
        ready = GaugeMetricFamily(
            "prefect_dstack_replica_up", "Whether the replica gets requests.", labels=REPLICA
        )
        wanted = GaugeMetricFamily(
            "prefect_dstack_replicas_wanted", "Replicas that the service is to have.", labels=["service"]
        )
        present = GaugeMetricFamily(
            "prefect_dstack_replicas_serving", "Replicas that get requests.", labels=["service"]
        )
        numbers: Counter[str] = Counter()
        records = {record.name: record for record in self._records}
        for service in {service for one in samples if one.current for service in one.replicas}:
            found = serving(samples, service, records.get(service))
            numbers[service] = sum(found.values())
            for replica, is_serving in found.items():
                ready.add_metric(_labels(service, replica), is_serving)
        for record in self._records:
            wanted.add_metric([record.name], record.wanted_replicas)
            if record.gateway not in unknown:
                present.add_metric([record.name], numbers[record.name])
        leads = GaugeMetricFamily(
            "prefect_dstack_controller_leads", "Whether this controller leads.", value=self._leads
        )
        return [ready, wanted, present, leads]


def _sampled(gateway: GatewayMetrics) -> None:
    try:
        gateway.sample()
    except Exception:  # a gateway that answers nonsense must not end the metrics of the others
        logger.exception("gateway %s: its counters cannot be read", gateway.gateway.name)


def _counted(totals: dict[tuple[str, str], Counter[str]], held: Counter[str]) -> Iterable[Metric]:
    requests = CounterMetricFamily(
        "prefect_dstack_requests",
        "Answers by class of status; without a replica: answers of the gateway itself.",
        labels=(*REPLICA, "code"),
    )
    for (service, replica), counters in sorted(totals.items()):
        for code in CODES:
            requests.add_metric([*_labels(service, replica), code], counters[code])
    yield requests
    for counter, (name, text) in COUNTERS.items():
        family = CounterMetricFamily(f"prefect_dstack_{name}", text, labels=REPLICA)
        for (service, replica), counters in sorted(totals.items()):
            if replica:
                family.add_metric(_labels(service, replica), counters[counter])
        yield family
    waited = CounterMetricFamily(
        "prefect_dstack_held_requests", "Requests that found no replica ready.", labels=["service"]
    )
    for service, number in sorted(held.items()):
        waited.add_metric([service], number)
    yield waited


def _timed(durations: dict[tuple[str, str], Durations]) -> Metric:
    first_byte = HistogramMetricFamily(
        "prefect_dstack_first_byte_seconds",
        "Time to the first byte of an answer, with what the request waited at the gateway.",
        labels=REPLICA,
    )
    for (service, replica), its in sorted(durations.items()):
        first_byte.add_metric(_labels(service, replica), list(its.cumulative()), its.seconds)
    return first_byte


def _measured(samples: Sequence[ProcessSample]) -> Iterable[Metric]:
    in_flight: Counter[tuple[str, str]] = Counter()
    queued: Counter[str] = Counter()
    held: Counter[str] = Counter()
    first_byte = GaugeMetricFamily(
        "prefect_dstack_first_byte_mean_seconds",
        "Mean time to the first byte of an answer, of the last 1,024.",
        labels=REPLICA,
    )
    whole = GaugeMetricFamily(
        "prefect_dstack_response_seconds", "Mean time of a whole answer, of the last 1,024.", labels=REPLICA
    )
    for one in samples:
        for service, row in one.services.items():
            queued[service] += row.queued
        for service, (now, _) in one.held.items():
            held[service] += now
        for service, rows in one.replicas.items():
            for replica, row in rows.items():
                if replica == SUCCESSOR:
                    continue
                in_flight[service, replica] += row.in_flight
                if one.current:
                    first_byte.add_metric(_labels(service, replica), row.first_byte)
                    whole.add_metric(_labels(service, replica), row.total)
    open_now = GaugeMetricFamily(
        "prefect_dstack_requests_in_flight", "Requests that the replica works on.", labels=REPLICA
    )
    for (service, replica), number in sorted(in_flight.items()):
        open_now.add_metric(_labels(service, replica), number)
    waiting = GaugeMetricFamily(
        "prefect_dstack_requests_queued", "Requests that wait for a replica with room.", labels=["service"]
    )
    held_now = GaugeMetricFamily(
        "prefect_dstack_requests_held", "Requests that wait for a first replica.", labels=["service"]
    )
    for service, number in sorted(queued.items()):
        waiting.add_metric([service], number)
        held_now.add_metric([service], held[service])
    return [open_now, waiting, held_now, first_byte, whole]


def _labels(service: str, replica: str) -> list[str]:
    return [service, replica.rsplit("-", 2)[1] if replica else "", replica]
