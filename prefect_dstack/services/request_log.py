"""The access log of a service, from the output of its gateway."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from datetime import datetime

from prefect_dstack.errors import UserError
from prefect_dstack.gateways.access_log import is_request_of
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.store.records import load_record
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["read_requests"]


def read_requests(
    name: str,
    *,
    replica: int | None = None,
    revision: int | None = None,
    tail: int | None = None,
    follow: bool = False,
    since: datetime | None = None,
) -> Iterator[str]:
    """Read which requests a service has answered, as far back as its gateway keeps its output.

    Args:
        name: The service.
        replica: Only those of this replica, counted from 0; None: all, those that reached no replica too.
        revision: Only those of replicas of this revision.
        tail: Only so many from the end; None: all.
        follow: Go on with those that come from now, until the gateway is stopped.
        since: Only those that ended since then.

    Yields:
        JSON objects, a line each, in the order in which the requests ended.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If it runs on another machine.
        UserError: If it has no access log.
    """
    record = load_record(name)
    infrastructure = resolve_infrastructure()
    refuse_elsewhere(record, infrastructure.here, "logs")
    place = infrastructure.gateway(record.gateway).control.place

    def wanted(line: str) -> bool:
        if not is_request_of(line, name):
            return False
        return (replica is None and revision is None) or _is_of(line, replica, revision)

    active = record.active_revision
    logged = active is not None and active.configuration.get("access_log") is True
    position, last = 0, deque[tuple[int, str]](maxlen=tail)
    for position, line in enumerate(place.log(since=since), 1):
        if wanted(line):
            last.append((position, line))
    if not logged and not last:
        raise UserError(f"{name}: has no access log; add 'access_log: true' to its file and apply it")
    if not follow:
        yield from (line for _, line in last)
        return
    # So many lines from the end, of all services; those that have come in between are not missed.
    lines = position - last[0][0] + 1 if last else 0
    yield from filter(wanted, place.log(tail=lines, follow=True, since=since))


def _is_of(line: str, replica: int | None, revision: int | None) -> bool:
    known = json.loads(line)
    return (replica is None or known["replica"].endswith(f"-{replica}")) and (
        revision is None or known["revision"] == str(revision)
    )
