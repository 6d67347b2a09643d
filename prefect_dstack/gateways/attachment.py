"""Where machines are in networks, and whether one reaches another without a tunnel: pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

__all__ = ["Attachment", "direct_address", "is_in"]


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


def is_in(address: str, network: str | None) -> bool:
    """Return whether an address lies in a network.

    Args:
        address: An IP address; a host name lies in no network.
        network: Such as `10.0.0.0/24`; None: no network.

    Returns:
        Whether it does.
    """
    try:
        return network is not None and ipaddress.ip_address(address) in ipaddress.ip_network(network)
    except ValueError:
        return False
