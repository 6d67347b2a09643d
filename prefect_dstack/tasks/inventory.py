"""What there is to deploy with: the fleets and gateways that the Prefect API knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect.settings import get_current_settings

from prefect_dstack.backends.base import Instance
from prefect_dstack.backends.fleet import Fleet, fleet_of
from prefect_dstack.blocks import DstackGateway, DstackSshFleet
from prefect_dstack.configurations import FleetConfiguration, GatewayConfiguration, load_configuration
from prefect_dstack.tasks import documents
from prefect_dstack.tasks.secrets import lookup

if TYPE_CHECKING:
    from prefect_dstack.aws_blocks import DstackAwsBackend
    from prefect_dstack.backends.aws import AwsBackend

__all__ = ["Inventory", "forget", "inventory"]

AWS_SLUG = "dstack-aws-backend"
AWS_BLOCK = "default"

# Tasks of one deployment ask again and again; somebody else's change is seen after this many seconds.
FRESH = 15.0


@dataclass(frozen=True)
class Inventory:
    """Fleets and gateways by name, and the AWS account.

    Attributes:
        fleets: The fleets.
        gateways: The gateways, as they were configured.
        gateway_instances: The machines of gateways that were created in a cloud.
        aws: The backend of the account; None if none is configured.
    """

    fleets: Mapping[str, Fleet]
    gateways: Mapping[str, GatewayConfiguration]
    gateway_instances: Mapping[str, Instance]
    aws: AwsBackend | None


_lock = threading.Lock()
_known: dict[str | None, tuple[float, Inventory]] = {}
_account: tuple[DstackAwsBackend, AwsBackend] | None = None


def inventory() -> Inventory:
    """Look up what there is.

    Returns:
        The inventory, at most 15 seconds old.
    """
    api = get_current_settings().api.url
    with _lock:
        looked, known = _known.get(api, (0.0, None))
        if known is None or time.monotonic() - looked > FRESH:
            gateways, instances = _gateways()
            known = Inventory(fleets=_fleets(), gateways=gateways, gateway_instances=instances, aws=_aws())
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


def _gateways() -> tuple[dict[str, GatewayConfiguration], dict[str, Instance]]:
    gateways = {}
    instances = {}
    for name, data in documents.data_of_all(DstackGateway).items():
        loaded = load_configuration(data["configuration"], name=name, directory=data["directory"])
        if isinstance(loaded, GatewayConfiguration):
            gateways[name] = loaded
        if "instance" in data["details"]:
            instances[name] = Instance.model_validate(data["details"]["instance"])
    return gateways, instances


def _aws() -> AwsBackend | None:
    if AWS_BLOCK not in documents.names_of_slug(AWS_SLUG):
        return None
    from prefect_dstack.aws_blocks import DstackAwsBackend

    block = documents.load(DstackAwsBackend, AWS_BLOCK)
    if block is None:
        return None
    global _account
    # As long as nothing was changed: a backend keeps its clients, and renews their sessions itself.
    if _account is None or _account[0] != block:
        _account = (block, block.backend())
    return _account[1]
