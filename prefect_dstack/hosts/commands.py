"""One command over one channel: its input, its output, its end."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Sequence

import paramiko

from prefect_dstack.hosts.machine import CommandResult
from prefect_dstack.hosts.transport import is_dead

__all__ = ["ConnectionLostError", "exchange"]

CHUNK = 65536


class ConnectionLostError(Exception):
    """The connection ended before the command's exit code arrived."""


def exchange(
    channel: paramiko.Channel, command: Sequence[str], stdin: bytes | None, deadline: float
) -> CommandResult:
    """Run a command, feed it, and read all that it writes.

    Args:
        channel: A fresh session; the caller closes it.
        command: The program and its arguments.
        stdin: For its standard input.
        deadline: By `time.monotonic`.

    Returns:
        Its exit code and output; exit code -1 if a signal ended it.

    Raises:
        TimeoutError: At the deadline.
        ConnectionLostError: If the connection was lost.
    """
    try:
        channel.settimeout(_left(deadline))
        channel.exec_command(shlex.join(command))
        stderr = bytearray()
        helpers = [threading.Thread(target=_drain, args=(channel.recv_stderr, stderr), daemon=True)]
        if stdin:
            helpers.append(threading.Thread(target=_feed, args=(channel, stdin), daemon=True))
        else:
            channel.shutdown_write()
        for helper in helpers:
            helper.start()
        stdout = bytearray()
        while chunk := channel.recv(CHUNK):
            stdout += chunk
            channel.settimeout(_left(deadline))
        for helper in helpers:
            helper.join(_left(deadline))
        if not channel.status_event.wait(_left(deadline)) or any(helper.is_alive() for helper in helpers):
            raise TimeoutError
    except TimeoutError:
        raise TimeoutError from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise ConnectionLostError(str(error)) from error
    if channel.exit_status == -1 and is_dead(channel.get_transport()):
        raise ConnectionLostError
    return CommandResult(channel.exit_status, bytes(stdout), bytes(stderr))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _drain(receive: Callable[[int], bytes], into: bytearray) -> None:
    with contextlib.suppress(OSError, EOFError):
        while chunk := receive(CHUNK):
            into += chunk


def _feed(channel: paramiko.Channel, data: bytes) -> None:
    # A command may end without having read everything.
    with contextlib.suppress(OSError, EOFError):
        channel.sendall(data)
        channel.shutdown_write()
