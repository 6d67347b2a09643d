"""The SSH connections of this process: one to each host, whoever asks."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_dstack.hosts.access import SshAccess
    from prefect_dstack.hosts.ssh import Connection

__all__ = ["close_connections", "connection_to", "connections", "shared_connections"]

_lock = threading.RLock()
_connections: dict[SshAccess, Connection] = {}
_users = 0


def connection_to(access: SshAccess, name: str | None = None) -> Connection:
    """Return the connection to a host, the same one for the same access.

    Args:
        access: How it is reached.
        name: What messages call it; default: its host name.

    Returns:
        The connection, which connects on first use.

    Raises:
        ConfigurationError: If `~/.ssh/config` is in the way.
    """
    # paramiko takes its time to import, which whoever only shares connections need not pay.
    from prefect_dstack.hosts.ssh import Connection
    from prefect_dstack.hosts.ssh_config import resolve

    with _lock:
        known = _connections.get(access)
        if known is None:
            before = resolve(access).proxy_jump
            jump = None if before is None else connection_to(before)
            known = _connections[access] = Connection(access, name, jump)
        return known


def connections() -> tuple[Connection, ...]:
    """List the connections that this process has used, jump hosts among them."""
    with _lock:
        return tuple(_connections.values())


@contextlib.contextmanager
def shared_connections() -> Iterator[None]:
    """Keep connections open for what is done inside; the last one out closes them all.

    Example:
        >>> with shared_connections():
        ...     pass  # everything in here, in any thread, uses one connection to each host
    """
    global _users
    with _lock:
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            last = _users == 0
        if last:
            close_connections()


def close_connections() -> None:
    """Disconnect from every host."""
    with _lock:
        closing = list(_connections.values())
        _connections.clear()
    for connection in reversed(closing):
        connection.close()


def _forget() -> None:
    """A forked child shares the sockets but not the threads that serve them."""
    global _lock, _users
    _lock = threading.RLock()
    _connections.clear()
    _users = 0


atexit.register(close_connections)
os.register_at_fork(after_in_child=_forget)
