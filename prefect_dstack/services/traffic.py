"""The traffic of services right now, from the counters of their gateways."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import NotFoundError, PrefectDstackError
from prefect_dstack.gateways import latency
from prefect_dstack.gateways.counters import CODES, Ledger, ProcessSample
from prefect_dstack.gateways.servers import SUCCESSOR
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.location import is_elsewhere
from prefect_dstack.store.records import readable_records
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["ServiceTraffic", "Traffic"]

PARALLEL_GATEWAYS = 16


class ServiceTraffic(BaseModel):
    """What one service bears."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the service.")
    wanted: int = Field(description="How many replicas there shall be.")
    serving: int = Field(description="How many get requests.")
    rate: float = Field(description="Answers per second since the last look.")
    error_rate: float = Field(description="Of those, the ones with a status of 500 or above.")
    first_byte: float | None = Field(
        description="Mean seconds to the first byte of the last 1,024 answers, of the slowest replica; None "
        "without any answer."
    )
    p95: float | None = Field(
        description="Seconds within which 95 % of the answers since the last look began; None without any."
    )
    in_flight: int = Field(description="Requests that replicas work on.")
    waiting: int = Field(description="Requests that wait at the gateway, for room or for a first replica.")
    problem: str = Field(default="", description="Why nothing is known of it; empty otherwise.")


class Traffic:
    """Looks at the gateways again and again; what has happened between two looks is what a rate is made of.

    Args:
        names: Which services; none: all that are to serve.
        clock: Seconds, by a clock that only goes forward.

    Raises:
        NotFoundError: If there is no service of such a name.
    """

    def __init__(self, names: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        records, _ = readable_records()
        known = {record.name for record in records}
        for name in names:
            if name not in known:
                raise NotFoundError(
                    f"{name}: there is no such service; there are: {', '.join(sorted(known))}"
                )
        self._names, self._clock = names, clock
        self._gateways: dict[str, _GatewayTraffic] = {}

    def look(self) -> list[ServiceTraffic]:
        """Look once; the first look has no rates yet.

        Returns:
            The services by name.
        """
        records = [
            record
            for record in readable_records()[0]
            if record.active is not None and (not self._names or record.name in self._names)
        ]
        infrastructure = resolve_infrastructure()
        there = [record for record in records if not is_elsewhere(record, infrastructure.here)]
        names = sorted({record.gateway for record in there})
        for name in names:
            self._gateways.setdefault(name, _GatewayTraffic(name, self._clock))
        with ThreadPoolExecutor(PARALLEL_GATEWAYS) as pool:
            looks = [
                pool.submit(copy_context().run, self._gateways[name].look, infrastructure) for name in names
            ]
            for done in looks:
                done.result()
        found = [
            self._gateways[record.gateway].of(record)
            if record in there
            else _unknown(record, f"runs on {record.location}")
            for record in records
        ]
        return sorted(found, key=lambda service: service.name)


class _GatewayTraffic:
    """The last two looks at one gateway."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name, self._clock = name, clock
        self._ledger = Ledger()
        self._at: float | None = None
        self._rates: dict[str, Counter[str]] = {}
        self._seconds = 0.0
        self._samples: Sequence[ProcessSample] = ()
        self._problem = ""
        self._durations: dict[str, Counter[int]] = {}

    def look(self, infrastructure: Infrastructure) -> None:
        """Look once.

        Args:
            infrastructure: Where the gateway is.
        """
        try:
            samples, departed = infrastructure.gateway(self.name).control.samples()
        except PrefectDstackError as error:
            self._samples, self._problem, self._at = (), str(error), None
            return
        now, before, took = self._clock(), self._answers(), self._took()
        self._ledger.take(samples, departed)
        self._samples, self._problem = samples, ""
        self._rates = {}
        if self._at is not None:
            self._rates = {
                name: counted - before.get(name, Counter()) for name, counted in self._answers().items()
            }
            self._seconds = now - self._at
        self._at = now
        self._durations = {
            name: counted - took.get(name, Counter()) for name, counted in self._took().items()
        }

    def of(self, record: ServiceRecord) -> ServiceTraffic:
        """Return what a service behind it bears."""
        if self._problem:
            return _unknown(record, self._problem)
        name, rates = record.name, self._rates.get(record.name, Counter())
        seconds = self._seconds or 1.0
        current = [
            row
            for one in self._samples
            if one.current
            for replica, row in one.replicas.get(name, {}).items()
            if replica != SUCCESSOR
        ]
        times = [row.first_byte for row in current if any(row.counters[code] for code in CODES)]
        in_flight = sum(
            row.in_flight
            for one in self._samples
            for replica, row in one.replicas.get(name, {}).items()
            if replica != SUCCESSOR
        )
        durations = self._durations.get(name, Counter())
        p95 = latency.quantile([durations[bucket] for bucket in range(len(latency.BUCKETS))], 0.95)
        queued = sum(one.services[name].queued for one in self._samples if name in one.services)
        held = sum(one.held.get(name, (0, 0))[0] for one in self._samples)
        return ServiceTraffic(
            name=name,
            wanted=record.wanted_replicas,
            serving=sum(row.up for row in current),
            rate=sum(rates.values()) / seconds,
            error_rate=rates["5xx"] / seconds,
            first_byte=max(times, default=None),
            p95=None if p95 is None else p95 / 1000,
            in_flight=in_flight,
            waiting=queued + held,
        )

    def _answers(self) -> dict[str, Counter[str]]:
        """Return the answers so far by service and class of status."""
        found: dict[str, Counter[str]] = {}
        for (service, _), counters in self._ledger.totals.items():
            its = found.setdefault(service, Counter())
            its.update({code: counters[code] for code in CODES})
        return found

    def _took(self) -> dict[str, Counter[int]]:
        """Return how many answers began after how long, by service and bucket."""
        found: dict[str, Counter[int]] = {}
        for (service, _), durations in self._ledger.durations.items():
            found.setdefault(service, Counter()).update(durations.counts)
        return found


def _unknown(record: ServiceRecord, problem: str) -> ServiceTraffic:
    return ServiceTraffic(
        name=record.name,
        wanted=record.wanted_replicas,
        serving=0,
        rate=0.0,
        error_rate=0.0,
        first_byte=None,
        p95=None,
        in_flight=0,
        waiting=0,
        problem=problem,
    )
