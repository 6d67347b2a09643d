"""Locks on a host that many deployers share."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence

from prefect_dstack.errors import HostNotReadyError, HostUnreachableError
from prefect_dstack.hosts.ssh import Connection

__all__ = ["host_lock"]

HELD = b"held\n"


@contextlib.contextmanager
def host_lock(
    connection: Connection,
    path: str,
    *,
    wait: float = 30.0,
    lease: float = 300.0,
    prefix: Sequence[str] = (),
) -> Iterator[None]:
    """Hold a lock on a host; it is let go when the block ends, or when the connection does.

    Args:
        connection: To the host.
        path: The lock's file there; it is made, and stays.
        wait: Seconds to wait for whoever holds it.
        lease: Seconds after which the host frees it in any case: it learns of a network that was cut only
            much later.
        prefix: What makes a command run as somebody else: `("sudo", "-n")`.

    Yields:
        While the lock is held.

    Raises:
        HostNotReadyError: If somebody else holds it for too long, or the host has no `flock`.
        HostUnreachableError: If the connection is lost meanwhile, and with it the lock.
    """
    # Each that waited there would keep one of the host's few sessions, until none is left for the holder.
    queue = connection.queues[path]
    if not queue.acquire(timeout=wait):
        raise HostNotReadyError(
            f"{connection.place}: others here have held {path} for {wait:.0f} s: try again later"
        )
    try:
        with _held_there(connection, path, wait, lease, prefix):
            yield
    finally:
        queue.release()


@contextlib.contextmanager
def _held_there(
    connection: Connection, path: str, wait: float, lease: float, prefix: Sequence[str]
) -> Iterator[None]:
    # `cat` ends when the channel does, and the lock with it.
    held = f"echo held; exec timeout {lease:.0f} cat >/dev/null"
    command = [*prefix, "flock", "-w", f"{wait:.0f}", "-E", "75", path, "sh", "-c", held]
    channel = connection.open_session()
    try:
        channel.settimeout(wait + 15)
        channel.exec_command(shlex.join(command))
        try:
            answer = channel.recv(len(HELD))
        except TimeoutError as error:
            raise HostUnreachableError(f"{connection.place}: no answer about the lock {path}") from error
        if answer != HELD:
            if channel.recv_exit_status() == 75:
                raise HostNotReadyError(
                    f"{connection.place}: somebody else has held {path} for {wait:.0f} s: try again later"
                )
            reason = channel.recv_stderr(4096).decode(errors="replace").strip() or "no answer"
            raise HostNotReadyError(f"{connection.place}: cannot lock {path}: {reason}")
        yield
        if channel.exit_status_ready() or channel.closed:
            raise HostUnreachableError(f"{connection.place}: the lock {path} was lost, try again")
    finally:
        channel.close()
