"""The requests that wait at a gateway for a first replica, counted over all its processes or one of them."""

from __future__ import annotations

from prefect_dstack.gateways.gateway import Gateway

__all__ = ["ever_held", "held", "held_by_current"]


def held(gateway: Gateway, service: str) -> int:
    """How many wait, at whichever process."""
    return sum(one.held.get(service, (0, 0))[0] for one in gateway.samples()[0])


def held_by_current(gateway: Gateway, service: str) -> int:
    """How many wait at the process with the present configuration."""
    return gateway.look().held.get(service, 0)


def ever_held(gateway: Gateway, service: str) -> int:
    """How many have waited at the process with the present configuration."""
    return sum(one.held.get(service, (0, 0))[1] for one in gateway.samples()[0] if one.current)
