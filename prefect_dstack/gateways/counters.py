"""What a gateway has counted, added up over all the processes that it has had."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prefect_dstack.gateways.latency import Durations, Tally
from prefect_dstack.gateways.servers import SUCCESSOR

__all__ = ["CODES", "Departed", "Ledger", "ProcessSample", "Row", "departed_with", "read_departed"]

CODES = ("1xx", "2xx", "3xx", "4xx", "5xx")
# The names of counters by those of HAProxy's columns.
_COLUMNS = {
    **{f"hrsp_{code}": code for code in CODES},
    "bin": "received",
    "bout": "sent",
    "wretr": "retries",
    "econ": "connection_errors",
    "eresp": "response_errors",
}

Departed = dict[str, dict[str, dict[str, int]]]
"""By process and server, what was counted for servers that HAProxy does not know any more."""


@dataclass(frozen=True)
class Row:
    """A line of `show stat`: one replica, or the service as a whole.

    Attributes:
        counters: What only grows while the process lives.
        in_flight: Requests that are worked on.
        queued: Requests that wait for a replica with room.
        ready: Whether its checks pass, if there are any.
        up: Whether the gateway sends it requests.
        first_byte: Mean seconds to the first byte of an answer, of the last 1,024.
        total: Mean seconds to the end of an answer, of the last 1,024.
    """

    counters: Mapping[str, int]
    in_flight: int = 0
    queued: int = 0
    ready: bool = False
    up: bool = False
    first_byte: float = 0.0
    total: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether there was any answer."""
        return any(self.counters.get(code) for code in CODES)

    @classmethod
    def of(cls, line: Mapping[str, str]) -> Row:
        """Read it.

        Args:
            line: The cells of the line, by their columns.
        """
        ready = line["status"].startswith(("UP", "no check"))
        return cls(
            counters={name: int(line.get(column) or 0) for column, name in _COLUMNS.items()},
            in_flight=int(line["scur"] or 0),
            queued=int(line["qcur"] or 0),
            ready=ready,
            up=ready and line["weight"] != "0",
            first_byte=int(line["rtime"] or 0) / 1000,
            total=int(line["ttime"] or 0) / 1000,
        )


@dataclass(frozen=True)
class ProcessSample:
    """What one process of HAProxy has counted so far.

    Attributes:
        process: Its id.
        current: Whether it has the present configuration.
        services: Each service as a whole.
        replicas: The replicas of each service.
        held: Of each service, the requests that wait for a first replica, and all that ever had to.
        durations: Of each service, how long its replicas took: tallies by replica and bucket. Replicas that
            are gone are among them.
    """

    process: int
    current: bool
    services: Mapping[str, Row]
    replicas: Mapping[str, Mapping[str, Row]]
    held: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    durations: Mapping[str, Mapping[str, Mapping[int, Tally]]] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether it works on nothing; a former process then counts nothing any more."""
        return not any(row.in_flight for row in self.services.values())


class Ledger:
    """The totals of one gateway; they never fall, whatever becomes of processes and replicas.

    Attributes:
        totals: The counters of each replica, by service and replica; those of no replica (an empty name) are
            answers of the gateway itself.
        held: How many requests had to wait for a first replica, by service.
        durations: How long the answers of each replica took to begin, by service and replica.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], Counter[str]] = {}
        self.held: Counter[str] = Counter()
        self.durations: dict[tuple[str, str], Durations] = {}
        self._seen: dict[int, dict[tuple[str, str], Counter[str]]] = {}
        self._whole: dict[int, dict[str, Counter[str]]] = {}
        self._own: dict[int, dict[str, Counter[str]]] = {}
        self._held: dict[int, Counter[str]] = {}
        self._took: dict[int, Mapping[str, Mapping[str, Mapping[int, Tally]]]] = {}

    def take(self, samples: Iterable[ProcessSample], departed: Departed) -> None:
        """Add what was counted since the last time.

        Args:
            samples: One of each process that lives.
            departed: What was known, before the samples were taken, of servers that are gone.
        """
        alive = set()
        for sample in samples:
            alive.add(sample.process)
            self._add(sample, departed.get(str(sample.process), {}))
        for process in self._seen.keys() - alive:
            for known in (self._seen, self._whole, self._own, self._held, self._took):
                known.pop(process, None)

    def _add(self, sample: ProcessSample, departed: Mapping[str, Mapping[str, int]]) -> None:
        seen = self._seen.setdefault(sample.process, {})
        for key, counters in _cumulative(sample, departed).items():
            before = seen.get(key, Counter())
            if key[1] != SUCCESSOR:  # what was passed on is counted by the next process
                self._grow(key, {name: value - before[name] for name, value in counters.items()})
            seen[key] = before | counters
        whole = self._whole.setdefault(sample.process, {})
        own = self._own.setdefault(sample.process, {})
        by_replicas: dict[str, Counter[str]] = defaultdict(Counter)
        for (service, _), counters in seen.items():
            by_replicas[service].update(counters)
        for service, row in sample.services.items():
            # That of the last time: a line that is read later may count what one before it did not yet.
            earlier = whole.get(service, Counter())
            answered = Counter({code: earlier[code] - by_replicas[service][code] for code in CODES})
            before = own.get(service, Counter())
            self._grow((service, ""), {code: answered[code] - before[code] for code in CODES})
            own[service] = before | answered
            whole[service] = Counter({code: row.counters[code] for code in CODES})
        held = self._held.setdefault(sample.process, Counter())
        for service, (_, ever) in sample.held.items():
            self.held[service] += max(0, ever - held[service])
            held[service] = max(held[service], ever)

        self._add_durations(sample)

    def _add_durations(self, sample: ProcessSample) -> None:
        earlier = self._took.get(sample.process, {})
        for service, replicas in sample.durations.items():
            for replica, tallies in replicas.items():
                if replica != SUCCESSOR:
                    before = earlier.get(service, {}).get(replica, {})
                    self.durations.setdefault((service, replica), Durations()).grow(before, tallies)
        self._took[sample.process] = sample.durations

    def forget(self, service: str, replica: str) -> None:
        """Drop the totals of a replica that has been gone for long."""
        self.totals.pop((service, replica), None)
        self.durations.pop((service, replica), None)

    def _grow(self, key: tuple[str, str], by: Mapping[str, int]) -> None:
        total = self.totals.setdefault(key, Counter())
        total.update({name: max(0, more) for name, more in by.items()})


def _cumulative(
    sample: ProcessSample, departed: Mapping[str, Mapping[str, int]]
) -> dict[tuple[str, str], Counter[str]]:
    """Add up what each replica has counted: one that was replaced has the name of the one before."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for server, counters in departed.items():
        service, _, replica = server.partition("/")
        found[service, replica] = Counter(counters)
    for service, rows in sample.replicas.items():
        for replica, row in rows.items():
            found.setdefault((service, replica), Counter()).update(row.counters)
    return found


def read_departed(data: bytes | None) -> Departed:
    """Read what was counted for servers that are gone.

    Args:
        data: What `departed_with` has written; None: nothing yet.
    """
    try:
        found = json.loads(data or b"{}")
    except ValueError:  # Counters that are lost must not stand in the way of a change.
        return {}
    return found if isinstance(found, dict) else {}


def departed_with(
    data: bytes | None, process: int, alive: Iterable[int], server: str, counters: Mapping[str, int]
) -> bytes:
    """Note what was counted for a server that goes; processes that are gone are forgotten.

    Args:
        data: What was noted before.
        process: The process that has counted.
        alive: The processes that live.
        server: The service and its replica: `chat/chat-3-0`.
        counters: What was counted.

    Returns:
        What is to be written.
    """
    kept = {str(one) for one in alive}
    known = {one: servers for one, servers in read_departed(data).items() if one in kept}
    servers = known.setdefault(str(process), {})
    servers[server] = dict(Counter(servers.get(server, {})) + Counter(counters))
    return json.dumps(known).encode()
