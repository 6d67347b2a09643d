"""From where we reach machines."""

from __future__ import annotations

import ipaddress
import socket
import urllib.error
import urllib.request

from prefect_dstack.errors import ProvisioningError

__all__ = ["CHECK_ADDRESS", "private_source", "public_address"]

CHECK_ADDRESS = "https://checkip.amazonaws.com"


def public_address(url: str = CHECK_ADDRESS) -> str:
    """Return the address from which our connections reach AWS.

    Args:
        url: Who is asked.

    Returns:
        A network of one address, for example `198.51.100.7/32`.

    Raises:
        ProvisioningError: If it cannot be found out.
    """
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a constant, or a test's
            return str(ipaddress.ip_network(ipaddress.ip_address(answer.read(100).decode().strip())))
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ProvisioningError(
            f"aws: our public address cannot be asked of {url} ({error}): set ssh_from to the networks that "
            "may connect to machines over SSH"
        ) from error


def private_source(network: str) -> str:
    """Find the address of this machine that packets to a private network carry.

    Args:
        network: For example `10.0.0.0/16`.

    Returns:
        A network of one address.

    Raises:
        ProvisioningError: If there is no way there.
    """
    target = str(ipaddress.ip_network(network)[1])
    try:
        # Connecting a datagram socket sends nothing; it only chooses the route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return f"{probe.getsockname()[0]}/32"
    except OSError as error:
        raise ProvisioningError(
            f"aws: no route from here to {network}: set public_ips or ssh_from"
        ) from error
