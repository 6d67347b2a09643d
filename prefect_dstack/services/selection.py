"""Which replicas of a service stay when it is to have fewer of them, or others."""

from __future__ import annotations

from collections.abc import Collection

from prefect_dstack.domain.record import DesiredReplicas, Revision, ServiceRecord
from prefect_dstack.domain.selection import numbers_in_place_of, numbers_to_keep
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.infrastructure.gateways import ManagedGateway

__all__ = ["of_present_replicas"]


def of_present_replicas(
    record: ServiceRecord,
    desired: DesiredReplicas,
    revision: Revision,
    gateway: ManagedGateway,
    leaving: Collection[int] = (),
) -> DesiredReplicas:
    """Return what is wanted as certain replicas: the busiest of those that a revision has already.

    Args:
        record: The record of the service.
        desired: How many are wanted.
        revision: The revision; one with replicas of its own begins with the lowest numbers.
        gateway: The gateway in front of the service.
        leaving: The numbers of replicas that are to go whatever they do.
    """
    active, names = record.active_revision, revision.groups
    if active is None or active.replicas_of != revision.replicas_of:
        return desired.preferring((), names)
    present, counts = record.wanted_numbers, desired.counts(names)
    if leaving:
        return desired.preferring(numbers_in_place_of(leaving, present, counts), names)
    # Who is busy matters only where some are to go.
    load = _open_requests(record, gateway) if sum(counts) < len(present) else {}
    return desired.preferring(numbers_to_keep(present, counts, load), names)


def _open_requests(record: ServiceRecord, gateway: ManagedGateway) -> dict[int, int]:
    """Count the open requests of each replica that can be used, by its number."""
    try:
        counted, failing = gateway.control.open_requests(record.name), gateway.unusable(record.name)
    except PrefectDstackError:
        return {}
    return {number: counted[name] for name, number in record.numbers_by_name.items() if name not in failing}
