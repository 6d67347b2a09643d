"""Which replicas get requests, as their gateway sees it."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.gateways.counters import ProcessSample
from prefect_dstack.gateways.servers import SUCCESSOR

__all__ = ["serving"]


def serving(samples: Iterable[ProcessSample], service: str, record: ServiceRecord | None) -> dict[str, bool]:
    """Return whether each replica of a service gets requests, from its gateway or from a router.

    Args:
        samples: What the processes of its gateway count.
        service: The service.
        record: Its record; None: it is not known, and neither are its routers.
    """
    return {
        replica: row.up or (row.ready and _is_behind_router(replica, record))
        for one in samples
        if one.current
        for replica, row in one.replicas.get(service, {}).items()
        if replica != SUCCESSOR
    }


def _is_behind_router(replica: str, record: ServiceRecord | None) -> bool:
    if record is None:
        return False
    revision, number = map(int, replica.rsplit("-", 2)[1:])
    return not record.is_direct(revision, number)
