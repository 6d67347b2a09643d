"""What the replicas of a service write."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from datetime import datetime

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import HostError, NotFoundError, PrefectDstackError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.failures import failure_log
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.store.records import find_record, load_record
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["read_logs", "read_logs_of"]

# How soon the replicas of a new revision are followed too.
LOOK_INTERVAL = 1.0


def read_logs(
    name: str,
    *,
    replica: int | None = None,
    revision: int | None = None,
    tail: int | None = None,
    follow: bool = False,
    since: datetime | None = None,
    named: bool = False,
) -> Iterator[str]:
    """Read what the replicas of a service write.

    Args:
        name: The service.
        replica: Only this replica, counted from 0; None: all.
        revision: Only those of this revision; of one that failed, what was kept of it. None: all that run.
        tail: Only so many lines from the end of each; None: all that is kept.
        follow: Go on with what they write from now, and with the revisions that come, until the service is
            stopped.
        since: Only what was written since then.
        named: Whether each line starts with the name of its replica even if there is one only.

    Yields:
        Lines; with several replicas, each starts with the name of its own.

    Raises:
        NotFoundError: If there is no such service, or no such replica.
        ConflictError: If it runs on another machine.
    """
    record = load_record(name)
    infrastructure = resolve_infrastructure()
    refuse_elsewhere(record, infrastructure.here, "logs")
    found = _replicas(infrastructure, record, replica, revision)
    if not found and replica is not None:
        others = _replicas(infrastructure, record, None, revision)
        if others:
            numbers = ", ".join(str(number) for number in sorted({it.replica.stamp.replica for it in others}))
            raise NotFoundError(f"{name}: there is no replica {replica}; there are: {numbers}")
    if not found:
        kept = failure_log(record, revision)
        if kept is not None:
            yield from kept.splitlines()[-tail:] if tail else kept.splitlines()
            return
        if revision is not None:
            record.revision(revision)
            raise NotFoundError(f"{name}: no replica of revision {revision} runs, and no log of it was kept")
        raise NotFoundError(
            f"{name}: no replica runs" if replica is None else f"{name}: there is no replica {replica}"
        )
    if follow:
        yield from _following(infrastructure, record, replica, revision, found, tail, since, named=named)
        return
    for item in found:
        prefix = f"{_name(item, record)}: " if named or len(found) > 1 else ""
        yield from (f"{prefix}{line}" for line in _lines(infrastructure, item, tail, since, follow=False))


def read_logs_of(
    names: Sequence[str],
    *,
    replica: int | None = None,
    revision: int | None = None,
    tail: int | None = None,
    follow: bool = False,
    since: datetime | None = None,
) -> Iterator[str]:
    """Read what the replicas of services write; see `read_logs`.

    Args:
        names: The services.
        replica: Only this replica.
        revision: Only those of this revision.
        tail: Only so many lines from the end of each replica.
        follow: Go on with what they write from now.
        since: Only what was written since then.

    Yields:
        Lines; those of several services start with the name of the replica.
    """
    options = {"replica": replica, "revision": revision, "tail": tail, "follow": follow, "since": since}
    if len(names) == 1:
        yield from read_logs(names[0], **options)  # type: ignore[arg-type]
    elif not follow:
        for name in names:
            yield from read_logs(name, named=True, **options)  # type: ignore[arg-type]
    else:
        yield from _interleaved(
            [read_logs(name, named=True, **options) for name in names]  # type: ignore[arg-type]
        )


def _interleaved(sources: Sequence[Iterator[str]]) -> Iterator[str]:
    """Yield the lines of several sources as they come; the first failure ends it."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue(maxsize=1000)

    def read(source: Iterator[str]) -> None:
        try:
            for line in source:
                lines.put(line)
        except BaseException as error:  # noqa: BLE001 - it is raised where the lines are read
            lines.put(error)
        else:
            lines.put(None)

    for source in sources:
        context = copy_context()
        threading.Thread(target=context.run, args=(read, source), daemon=True).start()
    open_sources = len(sources)
    while open_sources:
        line = lines.get()
        if isinstance(line, BaseException):
            raise line
        if line is None:
            open_sources -= 1
        else:
            yield line


def _replicas(
    infrastructure: Infrastructure, record: ServiceRecord, replica: int | None, revision: int | None
) -> list[FoundReplica]:
    source = None if revision is None else record.revision(revision).replicas_of
    observation = infrastructure.observe(record.name, record.runtimes)
    return [
        found
        for found in observation.found
        if replica in (None, found.replica.stamp.replica) and source in (None, found.replica.stamp.revision)
    ]


def _name(found: FoundReplica, record: ServiceRecord) -> str:
    """Return what the lines of a replica begin with: its name, and its group if it is of one."""
    stamp = found.replica.stamp
    group = record.group_of(stamp.revision, stamp.replica)
    return f"{stamp.name} ({group})" if group else stamp.name


def _lines(
    infrastructure: Infrastructure,
    found: FoundReplica,
    tail: int | None,
    since: datetime | None,
    *,
    follow: bool,
) -> Iterator[str]:
    return infrastructure.logs(found, tail=tail, follow=follow, since=since)


def _following(
    infrastructure: Infrastructure,
    known: ServiceRecord,
    replica: int | None,
    revision: int | None,
    found: list[FoundReplica],
    tail: int | None,
    since: datetime | None,
    *,
    named: bool,
) -> Iterator[str]:
    """Follow replicas, and those that take their place, until the service is stopped."""
    readers = _Readers(infrastructure, since, named=named or len(found) > 1)
    readers.follow(found, known, tail)
    looked = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            yield readers.lines.get(timeout=LOOK_INTERVAL / 2)
            continue
        if time.monotonic() - looked < LOOK_INTERVAL:
            continue
        looked = time.monotonic()
        record = find_record(known.name)
        if readers.ended and (record is None or (record.active is None and record.deploying is None)):
            return
        if record is not None:
            with contextlib.suppress(HostError):
                found = _replicas(infrastructure, record, replica, revision)
                readers.follow(found, record, None)


class _Readers:
    """Threads that each read what one replica writes."""

    def __init__(self, infrastructure: Infrastructure, since: datetime | None, *, named: bool) -> None:
        self._since = since
        self.lines: queue.Queue[str] = queue.Queue(maxsize=1000)
        self._infrastructure = infrastructure
        self._named = named
        self._threads: dict[str, threading.Thread] = {}

    @property
    def ended(self) -> bool:
        """Whether none of the replicas writes any more."""
        return not any(thread.is_alive() for thread in self._threads.values())

    def follow(self, found: list[FoundReplica], record: ServiceRecord, tail: int | None) -> None:
        """Read replicas that are not read yet."""
        self._named = self._named or len(found) > 1
        for item in found:
            if item.replica.id not in self._threads:
                prefix = f"{_name(item, record)}: " if self._named else ""
                thread = threading.Thread(target=self._read, args=(item, tail, prefix), daemon=True)
                self._threads[item.replica.id] = thread
                thread.start()

    def _read(self, item: FoundReplica, tail: int | None, prefix: str) -> None:
        try:
            for line in _lines(self._infrastructure, item, tail, self._since, follow=True):
                self.lines.put(f"{prefix}{line}")
        except PrefectDstackError as error:
            self.lines.put(f"{item.replica.name}: cannot be followed: {error}")
