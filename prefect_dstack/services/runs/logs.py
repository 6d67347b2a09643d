"""What tasks and development environments write: while they run, and after."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.sorting import LogSort

from prefect_dstack.errors import ConflictError, HostError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.store.clients import api_client
from prefect_dstack.store.run_records import load_run
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["read_run_logs"]

# So many lines the Prefect API sends at once.
PAGE = 200


def read_run_logs(
    name: str, *, tail: int | None = None, follow: bool = False, since: datetime | None = None
) -> Iterator[str]:
    """Read what the nodes of a task or a development environment write.

    Args:
        name: The run.
        tail: Only so many lines from the end of each node; None: all that is kept.
        follow: Go on with what they write from now, until they have ended.
        since: Only what was written since then.

    Yields:
        Lines; with several nodes, each starts with the rank of its own. Of a run that is over, they are
        those of its flow run.

    Raises:
        NotFoundError: If there is no such run.
        ConflictError: If it runs on another machine.
    """
    record = load_run(name)
    infrastructure = resolve_infrastructure()
    if record.is_over:
        lines = list(_of_flow_run(record.flow_run, since)) if record.flow_run else []
        yield from lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
        return
    if infrastructure.here.differs_from(record.location):
        raise ConflictError(
            f"{name}: runs on {record.location}, and this is {infrastructure.here}: read its log there"
        )
    found = infrastructure.observe(name, [record.runtime]).found
    if not follow:
        for item in found:
            yield from (
                f"{_prefix(item, found)}{line}"
                for line in _of_node(infrastructure, item, tail=tail, since=since, follow=False)
            )
        return
    yield from _merged(infrastructure, found, tail, since)


def _prefix(item: FoundReplica, found: list[FoundReplica]) -> str:
    return f"[{item.replica.stamp.replica}] " if len(found) > 1 else ""


def _of_node(
    infrastructure: Infrastructure,
    item: FoundReplica,
    *,
    tail: int | None,
    since: datetime | None,
    follow: bool,
) -> Iterator[str]:
    return infrastructure.logs(item, tail=tail, follow=follow, since=since)


def _merged(
    infrastructure: Infrastructure, found: list[FoundReplica], tail: int | None, since: datetime | None
) -> Iterator[str]:
    """Follow several nodes at once, until all have ended."""
    lines: queue.Queue[str | None] = queue.Queue(maxsize=1000)

    def read(item: FoundReplica) -> None:
        try:
            for line in _of_node(infrastructure, item, tail=tail, since=since, follow=True):
                lines.put(f"{_prefix(item, found)}{line}")
        except HostError as error:
            lines.put(f"{item.replica.name}: cannot be followed: {error}")
        finally:
            lines.put(None)

    for item in found:
        threading.Thread(target=read, args=(item,), daemon=True).start()
    for _ in found:
        while (line := lines.get()) is not None:
            yield line


def _of_flow_run(flow_run: str, since: datetime | None) -> Iterator[str]:
    wanted = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[UUID(flow_run)]),
        timestamp=None if since is None else LogFilterTimestamp(after_=since),
    )
    with api_client() as client:
        offset = 0
        while page := client.read_logs(wanted, limit=PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC):
            yield from (log.message for log in page)
            offset += len(page)
