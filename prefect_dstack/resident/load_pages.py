"""The loads of the last day on the pages of services, from what their gateways count."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter

from prefect_dstack.domain.load_history import LoadHistory, LoadPoint
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.gateways.counters import CODES, ProcessSample
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.resident.serving import serving
from prefect_dstack.services.publication import publish_load
from prefect_dstack.store.clients import sharing_client

__all__ = ["LoadPages", "renewed_after"]

logger = logging.getLogger(__name__)

PUBLISHED = 300.0
"""Seconds between two pictures of a service on which nothing else has changed."""
IDLE = 3600.0
"""And of one that nobody has asked: of a thousand services, most may be that."""
DAY = timedelta(days=1)
ALLOWANCE = 1.0
"""Seconds of computing for the pictures of one look, which is one a minute; those that remain are next."""


class LoadPages:
    """What services have borne since this controller began, and their pages.

    Args:
        clock: Seconds, by a clock that only goes forward.
        cost: Seconds of computing, by which the price of a picture is measured.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cost: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._cost = clock, cost
        self._began = clock()
        self._histories: dict[str, LoadHistory] = {}
        self._counted: dict[str, tuple[float, dict[tuple[int, str], int]]] = {}
        self._published: dict[str, tuple[float, object]] = {}

    def look(self, infrastructure: Infrastructure, records: Sequence[ServiceRecord]) -> None:
        """Look at the gateways once, and renew the pages that are due.

        Args:
            infrastructure: Where the gateways are.
            records: The services that are to be looked at; what is known of any other is forgotten.
        """
        names = {record.name for record in records}
        for known in (self._histories, self._published):
            for name in known.keys() - names:
                del known[name]
        gateways = {record.gateway for record in records}
        for name in self._counted.keys() - gateways:
            del self._counted[name]
        for name in sorted(gateways):
            gateway = infrastructure.find_gateway(name)
            if gateway is None:
                continue
            try:
                samples, _ = gateway.control.samples()
            except PrefectDstackError as error:
                logger.debug("gateway %s does not say what it bears: %s", name, error)
                continue
            self._note(name, samples, [record for record in records if record.gateway == name])
        due = self._due(records)
        if due:
            with sharing_client():
                self._publish(due)

    def _note(self, gateway: str, samples: Sequence[ProcessSample], records: Iterable[ServiceRecord]) -> None:
        now = self._clock()
        counts = {
            (one.process, service): sum(row.counters[code] for code in CODES)
            for one in samples
            for service, row in one.services.items()
        }
        before = self._counted.get(gateway)
        self._counted[gateway] = (now, counts)
        if before is None or now <= before[0]:
            return
        answers: Counter[str] = Counter()
        for (process, service), count in counts.items():
            # A process that is new has counted nothing before.
            answers[service] += max(0, count - before[1].get((process, service), 0))
        for record in records:
            history = self._histories.setdefault(record.name, LoadHistory())
            replicas = sum(serving(samples, record.name, record).values())
            history.add(datetime.now(UTC), answers[record.name] / (now - before[0]), replicas)

    def _due(self, records: Iterable[ServiceRecord]) -> list[ServiceRecord]:
        """Return the services whose pages are to be renewed, the longest overdue first."""
        due: list[tuple[float, ServiceRecord]] = []
        for record in records:
            points = self._points(record)
            if not any(point.rate or point.replicas for point in points):
                continue
            # Of those that this controller has not drawn yet, the ones with a load are first.
            at, shown = self._published.get(record.name, (self._began - IDLE, None))
            if shown is None or shown == _shown(record, points):
                at += renewed_after(points)
            due.append((at, record))
        now = self._clock()
        return [record for at, record in sorted(due, key=itemgetter(0)) if at <= now]

    def _publish(self, due: Iterable[ServiceRecord]) -> None:
        spent = self._cost()
        for record in due:
            points = self._points(record)
            publish_load(record, points)
            self._published[record.name] = (self._clock(), _shown(record, points))
            if self._cost() - spent >= ALLOWANCE:
                return

    def _points(self, record: ServiceRecord) -> list[LoadPoint]:
        history = self._histories.get(record.name)
        return [] if history is None else history.since(datetime.now(UTC) - DAY)


def _shown(record: ServiceRecord, points: Sequence[LoadPoint]) -> tuple[object, ...]:
    return record.active, record.endpoint, points[-1].replicas


def renewed_after(points: Sequence[LoadPoint]) -> float:
    """Return how many seconds a picture of a service stays if nothing else changes.

    Args:
        points: What it has borne, the oldest first.
    """
    return PUBLISHED if any(point.rate for point in points[-2:]) else IDLE
