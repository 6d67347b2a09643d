"""What there is to deploy with: the fleets and gateways that the Prefect API knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from prefect.settings import get_current_settings

from prefect_dstack.backends.fleet import Fleet, fleet_of
from prefect_dstack.blocks import DstackGateway, DstackSshFleet
from prefect_dstack.configurations import FleetConfiguration, GatewayConfiguration, load_configuration
from prefect_dstack.tasks import documents
from prefect_dstack.tasks.secrets import lookup

__all__ = ["Inventory", "forget", "inventory"]

# Tasks of one deployment ask again and again; somebody else's change is seen after this many seconds.
FRESH = 15.0


@dataclass(frozen=True)
class Inventory:
    """Fleets and gateways by name."""

    fleets: Mapping[str, Fleet]
    gateways: Mapping[str, GatewayConfiguration]


_lock = threading.Lock()
_known: dict[str | None, tuple[float, Inventory]] = {}


def inventory() -> Inventory:
    """Look up what there is.

    Returns:
        The inventory, at most 15 seconds old.
    """
    api = get_current_settings().api.url
    with _lock:
        looked, known = _known.get(api, (0.0, None))
        if known is None or time.monotonic() - looked > FRESH:
            known = Inventory(fleets=_fleets(), gateways=_gateways())
            _known[api] = (time.monotonic(), known)
        return known


def forget() -> None:
    """Look anew the next time, because something was changed."""
    with _lock:
        _known.clear()


def _fleets() -> dict[str, Fleet]:
    fleets = {}
    for name, data in documents.data_of_all(DstackSshFleet).items():
        loaded = load_configuration(data["configuration"], name=name, directory=data["directory"])
        if isinstance(loaded, FleetConfiguration):
            fleet = fleet_of(loaded, lookup)
            addresses = data["internal_addresses"]
            hosts = tuple(
                host.model_copy(update={"internal_ip": addresses.get(host.name, host.internal_ip)})
                for host in fleet.hosts
            )
            fleets[name] = fleet.model_copy(update={"hosts": hosts})
    return fleets


def _gateways() -> dict[str, GatewayConfiguration]:
    gateways = {}
    for name, data in documents.data_of_all(DstackGateway).items():
        loaded = load_configuration(data["configuration"], name=name, directory=data["directory"])
        if isinstance(loaded, GatewayConfiguration):
            gateways[name] = loaded
    return gateways
