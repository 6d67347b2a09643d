"""The keys of tunnels on the hosts that they may log in to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prefect_dstack.backends.base import Instance
from prefect_dstack.infrastructure.gateways import entered_over_ssh
from prefect_dstack.infrastructure.infrastructure import Infrastructure

if TYPE_CHECKING:
    from prefect_dstack.hosts.files import Commander
    from prefect_dstack.hosts.ssh import Connection

__all__ = ["key_hosts", "keys_on", "revoke_key"]


def key_hosts(
    infrastructure: Infrastructure, instances: Iterable[Instance]
) -> list[tuple[Commander, list[Instance]]]:
    """List the hosts on which keys of tunnels may be.

    Args:
        infrastructure: Where the instances belong.
        instances: The machines of replicas.

    Returns:
        Each host once, with those of the machines that it is, or that are reached through it.
    """
    found: dict[tuple[str, int, str | None], tuple[Commander, list[Instance]]] = {}
    for instance in instances:
        machine = entered_over_ssh(infrastructure.machine(instance))
        if machine is None:
            continue
        # paramiko takes its time to import, which services of this machine need not pay.
        from prefect_dstack.gateways import tunnels

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
    """Revoke a tunnel's key.

    Args:
        host: The host that it may log in to.
        gateway: As `keys_on` returns it.
        replica: As `keys_on` returns it.
    """
    from prefect_dstack.gateways import tunnels

    tunnels.revoke_key(host, gateway, replica)
