"""How gateways reach replicas: straight where both are on one network, else through SSH tunnels."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import psutil

from prefect_dstack.backends.base import Instance
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import GatewayError, HostUnreachableError
from prefect_dstack.runtimes.base import Replica
from prefect_dstack.settings import settings
from prefect_dstack.tasks import connections, gateway_places
from prefect_dstack.tasks.inventory import inventory

if TYPE_CHECKING:
    from prefect_dstack.gateways.tunnels import Attachment, TunnelHolder
    from prefect_dstack.hosts.files import Commander
    from prefect_dstack.hosts.ssh import Connection
    from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = ["holder", "key_hosts", "keys_on", "reach", "revoke_key", "tunnels_of", "unreach"]


def reach(gateway: str, instance: Instance, replica: Replica) -> tuple[str, int]:
    """See that a gateway can reach a replica. Run twice, there is one tunnel.

    Args:
        gateway: The gateway.
        instance: Where the replica runs.
        replica: The replica.

    Returns:
        The address and port at which the gateway reaches it.

    Raises:
        GatewayError: If there is no way.
        HostError: If one of the machines fails us.
    """
    is_local = gateway_places.configuration_of(gateway).backend == "local"
    if instance.backend == "local":
        if is_local:
            return replica.address, replica.port
        raise GatewayError(
            f"gateway '{gateway}' cannot reach replicas on this machine: use the gateway 'local', "
            "or run the service on a fleet"
        )
    # paramiko takes its time to import, which services of this machine need not pay.
    from prefect_dstack.gateways.tunnels import Attachment, direct_address, open_tunnel

    there = Attachment(instance.address, instance.private_address, instance.network)
    direct = direct_address(_attachment(gateway, instance.network), there)
    if direct is not None and direct == replica.address:
        return replica.address, replica.port
    machine = cast("SshMachine", connections.machine(instance))
    port = open_tunnel(holder(gateway), machine, replica.stamp, replica.address, replica.port)
    return "127.0.0.1", port


def unreach(gateway: str, stamp: Stamp, instance: Instance | None) -> None:
    """End the tunnel to a replica, if there is one.

    Args:
        gateway: The gateway.
        stamp: The replica.
        instance: Where it runs, or ran; None: on no machine that is known.

    Raises:
        HostError: If a machine does not answer.
    """
    if instance is not None and instance.backend == "local":
        return
    if not _may_hold(gateway) or not any(held.stamp.name == stamp.name for held in holder(gateway).held()):
        return
    from prefect_dstack.gateways.tunnels import close_tunnel

    machine = None if instance is None else cast("SshMachine", connections.machine(instance))
    try:
        close_tunnel(holder(gateway), machine, stamp)
    except HostUnreachableError:
        if machine is None:
            raise
        close_tunnel(holder(gateway), None, stamp)


def tunnels_of(gateway: str) -> list[Stamp]:
    """List the tunnels that a gateway holds.

    Args:
        gateway: The gateway.

    Returns:
        The replicas at their other ends.
    """
    return [held.stamp for held in holder(gateway).held()] if _may_hold(gateway) else []


def key_hosts(instances: Iterable[Instance]) -> list[tuple[Commander, list[Instance]]]:
    """List the hosts on which keys of tunnels may be.

    Args:
        instances: The machines of replicas.

    Returns:
        Each host once, with those of the machines that it is, or that are reached through it.
    """
    from prefect_dstack.gateways import tunnels

    found: dict[tuple[str, int, str | None], tuple[Commander, list[Instance]]] = {}
    for instance in instances:
        machine = cast("SshMachine", connections.machine(instance))
        way: list[tuple[Connection, Commander]] = [(machine.connection, machine)]
        way += [(jump, jump) for jump in tunnels.jump_hosts(machine.connection)]
        for connection, host in way:
            found.setdefault(tunnels.address_of(connection), (host, []))[1].append(instance)
    return list(found.values())


def keys_on(host: Commander) -> list[tuple[str, str]]:
    """List the keys of tunnels that may log in to a host.

    Args:
        host: The host.

    Returns:
        The gateway and the replica's name of each.
    """
    from prefect_dstack.gateways import tunnels

    return tunnels.keys_on(host)


def revoke_key(host: Commander, gateway: str, replica: str) -> None:
    """Take the right of a tunnel's key away.

    Args:
        host: The host that it may log in to.
        gateway: As `keys_on` says it.
        replica: As `keys_on` says it.
    """
    from prefect_dstack.gateways import tunnels

    tunnels.revoke_key(host, gateway, replica)


def holder(gateway: str) -> TunnelHolder:
    """Find what holds the tunnels of a gateway.

    Args:
        gateway: The gateway.

    Returns:
        Its holder.
    """
    if gateway_places.configuration_of(gateway).backend == "local":
        from prefect_dstack.gateways.local_tunnels import LocalTunnels

        return LocalTunnels(settings().home / "tunnels" / gateway, gateway)
    from prefect_dstack.gateways.host_tunnels import HostTunnels

    return HostTunnels(gateway_places.machine(gateway), gateway)


def _may_hold(gateway: str) -> bool:
    if gateway_places.configuration_of(gateway).backend == "local":
        return (settings().home / "tunnels" / gateway).is_dir()
    return True


def _attachment(gateway: str, network: str | None) -> Attachment:
    from prefect_dstack.gateways.tunnels import Attachment

    configuration = gateway_places.configuration_of(gateway)
    if configuration.backend == "local":
        own = next((address for address in _own_addresses() if _is_in(address, network)), None)
        return Attachment("127.0.0.1", own, network if own is not None else None)
    instance = inventory().gateway_instances.get(gateway)
    if instance is not None:
        return Attachment(instance.address, instance.private_address, instance.network)
    host = configuration.host
    hostname = gateway_places.address(gateway)
    private = None if host is None else host.internal_ip
    if private is None and _is_in(hostname, configuration.network):
        private = hostname
    return Attachment(hostname, private, configuration.network)


def _own_addresses() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        yield from (entry.address.partition("%")[0] for entry in addresses)


def _is_in(address: str, network: str | None) -> bool:
    try:
        return network is not None and ipaddress.ip_address(address) in ipaddress.ip_network(network)
    except ValueError:
        return False
