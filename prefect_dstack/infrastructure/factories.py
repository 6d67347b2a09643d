"""Makes the backends of this machine and of SSH hosts, as `registry` finds them.

paramiko and the Docker SDK take their time to import: only who has hosts pays for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_dstack.backends.base import Backend
from prefect_dstack.backends.local import LocalBackend
from prefect_dstack.configurations import FleetConfiguration, load_configuration
from prefect_dstack.errors import ConfigurationError, NotFoundError
from prefect_dstack.infrastructure.sources import BackendContext

if TYPE_CHECKING:
    from prefect_dstack.backends.fleet import Fleet

__all__ = ["GATEWAY_SLUG", "local", "ssh"]

FLEET_SLUG = "dstack-ssh-fleet"
GATEWAY_SLUG = "dstack-gateway"


def local(context: BackendContext) -> Backend:
    """Return this machine, which is always there.

    Args:
        context: What the backend may use.
    """
    return LocalBackend(context.home, context.gateway_port)


def ssh(context: BackendContext) -> Backend | None:
    """Return the hosts of fleets and of gateways.

    Args:
        context: What the backend may use.

    Returns:
        The backend; None if there are no such hosts.
    """
    blocks = context.sources.block_data(FLEET_SLUG)
    gateways = context.sources.block_data(GATEWAY_SLUG).values()
    if not blocks and not any("host" in (data.get("configuration") or {}) for data in gateways):
        return None
    from prefect_dstack.backends.ssh import SshBackend

    fleets, unreadable = [], {}
    for name, data in blocks.items():
        try:
            fleets.append(_fleet(name, data, context))
        except (ConfigurationError, NotFoundError) as error:
            unreadable[name] = f"its block cannot be used: {error}; apply its file again, or delete the block"
    return SshBackend(fleets, unreadable, context.sources.secret)


def _fleet(name: str, data: Any, context: BackendContext) -> Fleet:
    from prefect_dstack.backends.fleet import fleet_of

    loaded = load_configuration(
        data.get("configuration") or {}, name=name, directory=data.get("directory") or "."
    )
    if not isinstance(loaded, FleetConfiguration):
        raise ConfigurationError(f"is a {loaded.type}, not a fleet", key="type")
    fleet = fleet_of(loaded, context.sources.secret)
    addresses = data.get("internal_addresses") or {}
    hosts = tuple(
        host.model_copy(update={"internal_ip": addresses.get(host.name, host.internal_ip)})
        for host in fleet.hosts
    )
    return fleet.model_copy(update={"hosts": hosts})
