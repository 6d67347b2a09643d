"""What services cost."""

from __future__ import annotations

from collections.abc import Iterable

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.record import ServiceRecord

__all__ = ["hourly_price", "over_budget"]


def hourly_price(instances: Iterable[Instance]) -> float:
    """Return what machines cost together, as far as their prices are known.

    Args:
        instances: The machines; one with several replicas counts once.

    Returns:
        US dollars an hour.
    """
    prices = {(instance.backend, instance.id): instance.price or 0.0 for instance in instances}
    return sum(prices.values())


def over_budget(record: ServiceRecord, price: float) -> str:
    """Return that a service costs more than its budget, in one line; empty if it does not, or has none.

    Args:
        record: The record of the service.
        price: What its machines cost, in US dollars an hour.
    """
    active = record.active_revision
    budget = None if active is None else active.configuration.get("budget")
    if budget is None or price <= budget:
        return ""
    return f"costs ${price:.4g} an hour, and its budget is ${budget:.4g}"
