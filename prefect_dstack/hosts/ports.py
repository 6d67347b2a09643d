"""Free TCP ports of this machine."""

from __future__ import annotations

import random
import socket

from prefect_dstack.errors import HostNotReadyError

__all__ = ["REPLICA_PORTS", "free_port", "port_is_free"]

# Below the range that Linux (32768) and macOS (49152) hand to clients, so that a replica which is being
# restarted does not find its port taken by somebody's outgoing connection.
REPLICA_PORTS = range(20000, 30000)


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on a port right now.

    Args:
        port: The TCP port.
        address: The address to listen on.

    Returns:
        Whether nothing listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(address: str = "127.0.0.1") -> int:
    """Find a port for a replica.

    Args:
        address: The address to listen on.

    Returns:
        A free port of `REPLICA_PORTS`, picked at random so that two seekers rarely meet.

    Raises:
        HostNotReadyError: If all of them are taken.
    """
    for port in random.sample(REPLICA_PORTS, len(REPLICA_PORTS)):
        if port_is_free(port, address):
            return port
    raise HostNotReadyError(f"no free port on {address} between {REPLICA_PORTS[0]} and {REPLICA_PORTS[-1]}")
