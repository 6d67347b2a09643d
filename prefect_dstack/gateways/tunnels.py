"""The way from a gateway to a replica: straight over a private network, else through an SSH tunnel.

The gateway holds the tunnel with a key of its own, made where the gateway is, which may open that one port of
the replica's host and do nothing else. Whatever holds it connects again by itself after either side was gone.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import GatewayError
from prefect_dstack.hosts.authorized_keys import authorize, authorized, revoke
from prefect_dstack.hosts.files import Commander
from prefect_dstack.hosts.ssh import Connection
from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = [
    "HeldTunnel",
    "Hop",
    "TunnelHolder",
    "TunnelTarget",
    "address_of",
    "close_tunnel",
    "jump_hosts",
    "keys_on",
    "open_tunnel",
    "revoke_key",
    "ssh_command",
    "ssh_files",
]

ALIAS = "replica"


@dataclass(frozen=True)
class Hop:
    """An SSH server on the way of a tunnel, and as whom it is entered.

    Attributes:
        hostname: The host, as the hop before it reaches it.
        ssh_port: The port of its SSH server.
        user: Who the tunnel logs in as.
        host_key: The host's public key: `ssh-ed25519 AAAA...`.
        proxy_command: The command that leads to it, for the user's shell; only the first hop may have one.
    """

    hostname: str
    ssh_port: int
    user: str
    host_key: str
    # It may hold a password.
    proxy_command: str | None = field(default=None, repr=False, kw_only=True)


@dataclass(frozen=True)
class TunnelTarget(Hop):
    """Where a tunnel leads: a port that the last of its hops reaches.

    Attributes:
        address: The replica's address, as its host sees it.
        port: The replica's port there.
        jumps: The hops before the replica's host, the nearest to the gateway first.
    """

    address: str
    port: int
    jumps: tuple[Hop, ...] = ()


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

    @property
    def connection(self) -> Connection | None:
        """How we reach the gateway's machine; None: it is this one."""
        ...

    def make_key(self, stamp: Stamp) -> str:
        """Create a key for a tunnel, unless it has one; the private half stays there.

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
        GatewayError: If the gateway's machine cannot hold it, or has no way to the replica's host.
        HostError: If one of the machines fails us.
    """
    jumps = _jumps_between(holder.connection, machine.connection)
    _refuse_foreign_command(holder, [*jumps, machine.connection][0])
    key, name = holder.make_key(stamp), _key_name(holder.gateway, stamp)
    for jump, beyond in itertools.pairwise([*jumps, machine.connection]):
        authorize(jump, key, name, beyond.resolved.hostname, beyond.resolved.port)
    authorize(machine, key, name, address, port)
    target = TunnelTarget(
        **vars(_hop(machine.connection)), address=address, port=port, jumps=tuple(map(_hop, jumps))
    )
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
        hosts: list[Commander] = [*jump_hosts(machine.connection), machine]
        for host in hosts:
            revoke(host, _key_name(holder.gateway, stamp))


def jump_hosts(connection: Connection) -> list[Connection]:
    """List the hosts through which we reach another.

    Args:
        connection: To that other host.

    Returns:
        Their connections, the nearest to us first.
    """
    before = connection.jump
    return [] if before is None else [*jump_hosts(before), before]


def _jumps_between(gateway: Connection | None, replica: Connection) -> list[Connection]:
    """Leave out of the way to a replica's host what leads to the gateway too: it is there already."""
    way = jump_hosts(replica)
    passed = [] if gateway is None else [*jump_hosts(gateway), gateway]
    while way and passed and address_of(way[0]) == address_of(passed[0]):
        way, passed = way[1:], passed[1:]
    return way


def _refuse_foreign_command(holder: TunnelHolder, first: Connection) -> None:
    """Refuse a way that begins with a command of this machine, if the gateway is on another."""
    if holder.connection is None or first.resolved.proxy_command is None:
        return
    raise GatewayError(
        f"gateway '{holder.gateway}' on {holder.connection.name} has no way to {first.place}: this machine "
        "reaches it through ProxyCommand of ~/.ssh/config, which other machines cannot use: put both on one "
        "private network (`network` of the fleet), name a host that both reach as its `proxy_jump`, "
        "or use the gateway on this machine"
    )


def address_of(connection: Connection) -> tuple[str, int, str | None]:
    """Distinguish two connections to one SSH server from connections to two servers.

    Args:
        connection: To a host.

    Returns:
        The server's host name and port, as the hop before it knows them, and the command that leads to it:
        many commands lead to a `localhost`.
    """
    resolved = connection.resolved
    return resolved.hostname, resolved.port, resolved.proxy_command


def _hop(connection: Connection) -> Hop:
    resolved = connection.resolved
    return Hop(
        resolved.hostname,
        resolved.port,
        resolved.user,
        connection.host_key().line,
        proxy_command=resolved.proxy_command,
    )


def keys_on(host: Commander) -> list[tuple[str, str]]:
    """List the keys of tunnels that may log in to a host.

    Args:
        host: The host.

    Returns:
        The gateway and the replica's name of each.

    Raises:
        HostError: If the host does not answer.
    """
    names = (name.partition(":") for name in authorized(host))
    return [(gateway, replica) for gateway, _, replica in names]


def revoke_key(host: Commander, gateway: str, replica: str) -> None:
    """Revoke a tunnel's key of which only the name is known.

    Args:
        host: The host.
        gateway: As `keys_on` says it.
        replica: As `keys_on` says it.

    Raises:
        HostError: If the host does not answer.
    """
    revoke(host, f"{gateway}:{replica}")


def ssh_files(directory: str, port: int, target: TunnelTarget) -> dict[str, bytes]:
    """Return the files with which `ssh` holds a tunnel until either side is gone.

    Args:
        directory: Where these files and `key` will be.
        port: The port of 127.0.0.1 to listen on.
        target: Where it leads.

    Returns:
        Contents by name: `config`, and `known_hosts` with the one key that each host may show.
    """
    bracketed = f"[{target.address}]" if ":" in target.address else target.address
    hops = [*target.jumps, target]
    aliases = [*(f"jump-{number}" for number in range(len(target.jumps))), ALIAS]
    config = ""
    for number, (alias, hop) in enumerate(zip(aliases, hops, strict=True)):
        options: dict[str, object] = {
            "Host": alias,
            "HostName": hop.hostname,
            "Port": hop.ssh_port,
            "User": hop.user,
            "HostKeyAlias": alias,
        }
        if hop.proxy_command is not None:
            options["ProxyCommand"] = hop.proxy_command.replace("%", "%%")
        if number > 0:
            # What `ProxyJump` comes to; that, however, does not quote the path.
            before = [
                "ssh",
                "-F",
                f"{directory}/config".replace("%", "%%"),
                "-W",
                "[%h]:%p",
                aliases[number - 1],
            ]
            options["ProxyCommand"] = shlex.join(before)
        if alias == ALIAS:
            options["LocalForward"] = f"127.0.0.1:{port} {bracketed}:{target.port}"
        config += _lines(options)
    config += _lines(
        {
            "Host": "*",
            "ExitOnForwardFailure": "yes",
            "IdentityFile": _quoted(f"{directory}/key"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": _quoted(f"{directory}/known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
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
    )
    known_hosts = "".join(f"{alias} {hop.host_key}\n" for alias, hop in zip(aliases, hops, strict=True))
    return {"config": config.encode(), "known_hosts": known_hosts.encode()}


def ssh_command(directory: str) -> list[str]:
    """Return the command that holds a tunnel, with the files that `ssh_files` writes."""
    return ["ssh", "-N", "-T", "-F", f"{directory}/config", ALIAS]


def _lines(options: dict[str, object]) -> str:
    return "".join(f"{name} {value}\n" for name, value in options.items())


def _quoted(path: str) -> str:
    """Quote a path for OpenSSH."""
    return '"' + path.replace("%", "%%") + '"'


def _key_name(gateway: str, stamp: Stamp) -> str:
    return f"{gateway}:{stamp.name}"
