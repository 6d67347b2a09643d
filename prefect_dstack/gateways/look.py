"""One look at everything behind a gateway, however many services there are."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect_dstack.gateways.observation import ReplicaHealth, ServiceLoad
from prefect_dstack.gateways.runtime import parse_held
from prefect_dstack.gateways.servers import SUCCESSOR, service_of

__all__ = ["GatewayLook"]

Line = Mapping[str, str]

# Of the hundred columns of each line.
_COLUMNS = (
    *("pxname", "svname", "req_tot", "stot", "scur", "qcur", "status", "weight", "lastchg"),
    *("check_desc", "check_code", "last_chk"),
)


@dataclass(frozen=True)
class GatewayLook:
    """What a gateway has shown of all its services at once.

    Attributes:
        process: The process that counted; another one has begun anew.
        services: The line of each service as a whole.
        replicas: The lines of the replicas of each service.
        former: The open requests of processes with an earlier configuration, by service and replica.
        held: Of each service, the requests that wait for a first replica.
    """

    process: int
    services: Mapping[str, Line]
    replicas: Mapping[str, Sequence[Line]]
    former: Mapping[str, Counter[str]]
    held: Mapping[str, int]

    @classmethod
    def of(cls, process: int, statistics: str, held: str, former: Sequence[str]) -> GatewayLook:
        """Read the answers of HAProxy.

        Args:
            process: The process with the present configuration.
            statistics: What it answers to `show stat` of all backends and servers.
            held: What it answers to `show held`.
            former: What each process with an earlier configuration answers to `show stat` of all servers.
        """
        services: dict[str, Line] = {}
        replicas: dict[str, list[Line]] = {}
        for service, line in _lines(statistics):
            if line["svname"] == "BACKEND":
                services[service] = line
            else:
                replicas.setdefault(service, []).append(line)
        still_open: dict[str, Counter[str]] = {}
        for answer in former:
            for service, line in _lines(answer):
                still_open.setdefault(service, Counter())[line["svname"]] += int(line["scur"] or 0)
        waiting = {service: now for service, (now, _) in parse_held(held).items()}
        return cls(process, services, replicas, still_open, waiting)

    def load(self, service: str, replicas: Collection[str] | None = None) -> ServiceLoad:
        """Return what a service has to bear, or some of its replicas.

        Args:
            service: The service.
            replicas: Only these; of what waits for any replica, they have their share. None: all of them.

        Returns:
            The requests so far, and those that are open or wait now.
        """
        row, servers = self.services.get(service, {}), self.replicas.get(service, ())
        former, held = self.former.get(service, Counter()), self.held.get(service, 0)
        queued = int(row.get("qcur") or 0)
        if replicas is None:
            return ServiceLoad(
                process=self.process,
                requests=int(row.get("req_tot") or row.get("stot") or 0),
                in_flight=int(row.get("scur") or 0) - queued + former.total(),
                queued=queued,
                held=held,
            )
        some = [server for server in servers if server["svname"] in replicas]
        share = len(some) / max(1, len(servers))
        still_open = sum(former[name] for name in replicas)
        return ServiceLoad(
            process=self.process,
            requests=sum(int(server["stot"] or 0) for server in some),
            in_flight=sum(int(server["scur"] or 0) for server in some) + still_open,
            queued=round(queued * share),
            held=round(held * share),
        )

    def health(self, service: str) -> dict[str, ReplicaHealth]:
        """Return what the gateway thinks of the replicas of a service, by name.

        Args:
            service: The service.
        """
        return {server["svname"]: ReplicaHealth.of(server) for server in self.replicas.get(service, ())}


def _lines(answer: str) -> Iterator[tuple[str, Line]]:
    """Yield the service of each line, and what is needed of it."""
    rows = csv.reader(answer.removeprefix("# ").splitlines())
    header = next(rows, [])
    wanted = [(name, header.index(name)) for name in _COLUMNS if name in header]
    for row in rows:
        line = {name: row[index] for name, index in wanted if index < len(row)}
        service = service_of(line.get("pxname", ""))
        if service is not None and line["svname"] not in ("", SUCCESSOR):
            yield service, line
