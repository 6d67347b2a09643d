"""The loads of the last day on the pages of services, from what their gateways count."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from prefect_dstack.domain.load_history import LoadHistory, LoadPoint
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.gateways.counters import CODES, ProcessSample
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.resident.serving import serving
from prefect_dstack.services.publication import publish_load

__all__ = ["LoadPages", "renewed_after"]

logger = logging.getLogger(__name__)

PUBLISHED = 300.0
"""Seconds between two pictures of a service on which nothing else has changed."""
IDLE = 3600.0
"""And of one that nobody has asked: of a thousand services, most may be that."""
DAY = timedelta(days=1)


class LoadPages:
    """What services have borne since this controller began, and their pages.

    Args:
        clock: Seconds, by a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
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
        for record in records:
            self._publish(record)

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

    def _publish(self, record: ServiceRecord) -> None:
        history = self._histories.get(record.name)
        points = [] if history is None else history.since(datetime.now(UTC) - DAY)
        if not any(point.rate or point.replicas for point in points):
            return
        now, shows = self._clock(), (record.active, record.endpoint, points[-1].replicas)
        at, shown = self._published.get(record.name, (float("-inf"), None))
        if now - at >= renewed_after(points) or shows != shown:
            publish_load(record, points)
            self._published[record.name] = (now, shows)


def renewed_after(points: Sequence[LoadPoint]) -> float:
    """Return how many seconds a picture of a service stays if nothing else changes.

    Args:
        points: What it has borne, the oldest first.
    """
    return PUBLISHED if any(point.rate for point in points[-2:]) else IDLE
