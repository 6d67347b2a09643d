"""The way from a gateway to a replica: straight over a private network, else through an SSH tunnel.

The gateway holds the tunnel with a key of its own, made where the gateway is, which may open that one port of
the replica's host and do nothing else. Whatever holds it connects again by itself after either side was gone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prefect_dstack.errors import GatewayError
from prefect_dstack.hosts.authorized_keys import authorize, authorized, revoke
from prefect_dstack.hosts.ssh_machine import SshMachine
from prefect_dstack.services.stamp import Stamp

__all__ = [
    "Attachment",
    "HeldTunnel",
    "TunnelHolder",
    "TunnelTarget",
    "close_tunnel",
    "direct_address",
    "keys_on",
    "open_tunnel",
    "revoke_key",
    "ssh_command",
    "ssh_files",
]

ALIAS = "replica"


@dataclass(frozen=True)
class Attachment:
    """Where a machine is, as seen from others.

    Attributes:
        address: Where we reach it.
        private_address: Its address on a private network.
        network: That network, such as `10.0.0.0/24`: machines in one reach each other.
    """

    address: str
    private_address: str | None = None
    network: str | None = None


@dataclass(frozen=True)
class TunnelTarget:
    """Where a tunnel leads, and as whom.

    Attributes:
        hostname: The replica's host, as the gateway reaches it.
        ssh_port: The port of its SSH server.
        user: Who the tunnel logs in as.
        host_key: The host's public key: `ssh-ed25519 AAAA...`.
        address: The replica's address, as its host sees it.
        port: The replica's port there.
    """

    hostname: str
    ssh_port: int
    user: str
    host_key: str
    address: str
    port: int


@dataclass(frozen=True)
class HeldTunnel:
    """A tunnel that a gateway holds.

    Attributes:
        stamp: The replica at its other end.
        port: The port on 127.0.0.1 of the gateway's machine that leads to it.
    """

    stamp: Stamp
    port: int


class TunnelHolder(Protocol):
    """Holds the tunnels of one gateway, on the gateway's machine."""

    @property
    def gateway(self) -> str:
        """The name of the gateway."""
        ...

    def make_key(self, stamp: Stamp) -> str:
        """Make a key for a tunnel, unless it has one; the private half stays there.

        Returns:
            The public half.
        """
        ...

    def hold(self, stamp: Stamp, target: TunnelTarget) -> int:
        """Hold a tunnel from now on, unless it is held already with the same target.

        Returns:
            The port on 127.0.0.1 there.
        """
        ...

    def held(self) -> Sequence[HeldTunnel]:
        """List the tunnels that are held."""
        ...

    def let_go(self, stamp: Stamp) -> None:
        """End a tunnel, and forget its key; one that is not held is no error."""
        ...

    def log(self, stamp: Stamp) -> str:
        """Read what a tunnel's `ssh` has said."""
        ...


def direct_address(gateway: Attachment, replica: Attachment) -> str | None:
    """Decide whether a gateway reaches a replica without a tunnel.

    Args:
        gateway: The gateway's machine.
        replica: The replica's machine.

    Returns:
        The address to reach it at; None: only through a tunnel.

    Example:
        >>> inside = Attachment("203.0.113.7", "10.0.0.7", "10.0.0.0/24")
        >>> direct_address(Attachment("203.0.113.1", "10.0.0.1", "10.0.0.0/24"), inside)
        '10.0.0.7'
        >>> direct_address(Attachment("198.51.100.1"), inside) is None
        True
    """
    if gateway.address == replica.address:
        return replica.private_address or "127.0.0.1"
    if replica.private_address is None or gateway.network is None:
        return None
    if gateway.network == replica.network:
        return replica.private_address
    try:
        inside = ipaddress.ip_address(replica.private_address) in ipaddress.ip_network(
            gateway.network, strict=False
        )
    except ValueError:  # the name of a network, as clouds give them
        inside = False
    return replica.private_address if inside and replica.network is None else None


def open_tunnel(holder: TunnelHolder, machine: SshMachine, stamp: Stamp, address: str, port: int) -> int:
    """Lead a port of the gateway's machine to a replica. Run twice, there is one tunnel.

    Args:
        holder: Of the gateway.
        machine: The replica's host.
        stamp: The replica.
        address: Where it listens, as its host sees it.
        port: The port there.

    Returns:
        The port on 127.0.0.1 of the gateway's machine; it answers as soon as `ssh` has connected.

    Raises:
        GatewayError: If the gateway's machine cannot hold it.
        HostError: If one of the machines fails us.
    """
    resolved = machine.connection.resolved
    if resolved.proxy_jump is not None:
        raise GatewayError(
            f"{machine.name}: is behind a jump host, where the gateway '{holder.gateway}' cannot reach it: "
            "give both an address on one private network (`internal_ip`, `network`)"
        )
    target = TunnelTarget(
        hostname=resolved.hostname,
        ssh_port=resolved.port,
        user=resolved.user,
        host_key=machine.connection.host_key().line,
        address=address,
        port=port,
    )
    authorize(machine, holder.make_key(stamp), _key_name(holder.gateway, stamp), address, port)
    return holder.hold(stamp, target)


def close_tunnel(holder: TunnelHolder, machine: SshMachine | None, stamp: Stamp) -> None:
    """End a tunnel, and take its key's right away; what is gone already is no error.

    Args:
        holder: Of the gateway.
        machine: The replica's host; None: it is gone for good.
        stamp: The replica.

    Raises:
        HostError: If a machine does not answer; the gateway's end is gone if only the other one does not.
    """
    holder.let_go(stamp)
    if machine is not None:
        revoke(machine, _key_name(holder.gateway, stamp))


def keys_on(machine: SshMachine) -> list[tuple[str, str]]:
    """List the keys of tunnels that may log in to a host.

    Args:
        machine: The host.

    Returns:
        The gateway and the replica's name of each.

    Raises:
        HostError: If the host does not answer.
    """
    names = (name.partition(":") for name in authorized(machine))
    return [(gateway, replica) for gateway, _, replica in names]


def revoke_key(machine: SshMachine, gateway: str, replica: str) -> None:
    """Take the right of a tunnel's key away, when only its name is known.

    Args:
        machine: The host.
        gateway: As `keys_on` says it.
        replica: As `keys_on` says it.

    Raises:
        HostError: If the host does not answer.
    """
    revoke(machine, f"{gateway}:{replica}")


def ssh_files(directory: str, port: int, target: TunnelTarget) -> dict[str, bytes]:
    """Write what `ssh` reads to hold a tunnel until either side is gone.

    Args:
        directory: Where these files and `key` will be.
        port: The port of 127.0.0.1 to listen on.
        target: Where it leads.

    Returns:
        Contents by name: `config`, and `known_hosts` with the one key that the host may show.
    """
    bracketed = f"[{target.address}]" if ":" in target.address else target.address
    options = {
        "HostName": target.hostname,
        "Port": target.ssh_port,
        "User": target.user,
        "LocalForward": f"127.0.0.1:{port} {bracketed}:{target.port}",
        "ExitOnForwardFailure": "yes",
        "IdentityFile": _quoted(f"{directory}/key"),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": _quoted(f"{directory}/known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": ALIAS,
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "ConnectTimeout": 5,
        # A peer that is gone without a word is noticed after 10 s.
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 2,
        "ControlMaster": "no",
        "ControlPath": "none",
        "LogLevel": "ERROR",
    }
    config = "".join(f"{name} {value}\n" for name, value in options.items())
    return {"config": config.encode(), "known_hosts": f"{ALIAS} {target.host_key}\n".encode()}


def ssh_command(directory: str) -> list[str]:
    """Write the command that holds a tunnel, with the files that `ssh_files` writes."""
    return ["ssh", "-N", "-T", "-F", f"{directory}/config", ALIAS]


def _quoted(path: str) -> str:
    """Write a path so that OpenSSH takes it as it is."""
    return '"' + path.replace("%", "%%") + '"'


def _key_name(gateway: str, stamp: Stamp) -> str:
    return f"{gateway}:{stamp.name}"
