"""Free TCP ports of a host."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection

from prefect_dstack.errors import HostNotReadyError
from prefect_dstack.hosts.ports import REPLICA_PORTS
from prefect_dstack.hosts.ssh import Connection

__all__ = ["RemotePorts", "listening_ports"]

LISTENING = "0A"
# A port that was handed out is given to nobody else until its replica has had the time to listen on it.
SET_ASIDE = 120.0

_lock = threading.Lock()
_set_aside: dict[tuple[str, int], float] = {}


def listening_ports(table: str) -> set[int]:
    """Read the ports that something listens on.

    Args:
        table: The text of Linux's `/proc/net/tcp` and `/proc/net/tcp6`.

    Returns:
        The ports, on whichever address.
    """
    ports = set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == LISTENING:
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


class RemotePorts:
    """Picks ports for replicas on a host.

    Args:
        connection: To the host.
        address: Where the replicas publish their ports.
    """

    def __init__(self, connection: Connection, address: str) -> None:
        self._connection = connection
        self._address = address

    def pick(self) -> int:
        """Find a port that nothing listens on, and that nobody in this process was given lately.

        Returns:
            A port of `REPLICA_PORTS`.

        Raises:
            HostNotReadyError: If all of them are taken.
            HostUnreachableError: If the host does not answer.
        """
        table = self._connection.run(
            ["cat", "/proc/net/tcp", "/proc/net/tcp6"], timeout=30, idempotent=True
        ).stdout.decode(errors="replace")
        return self._choose(listening_ports(table))

    def _choose(self, listening: Collection[int]) -> int:
        now = time.monotonic()
        place = self._connection.place
        with _lock:
            for key in [key for key, until in _set_aside.items() if until < now]:
                del _set_aside[key]
            for port in random.sample(REPLICA_PORTS, len(REPLICA_PORTS)):
                if port not in listening and (place, port) not in _set_aside:
                    _set_aside[place, port] = now + SET_ASIDE
                    return port
        raise HostNotReadyError(
            f"{place}: no free port on {self._address} between {REPLICA_PORTS[0]} and {REPLICA_PORTS[-1]}"
        )
