"""Unix sockets of a host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import paramiko

from prefect_dstack.errors import HostNotReadyError
from prefect_dstack.hosts.ssh import ChannelRefusedError, Connection

__all__ = ["connect"]

# Joins standard input and output with a socket, where the SSH server itself may not open it.
RELAY = """
if command -v python3 >/dev/null 2>&1; then exec python3 -I -S -c '
import os, select, socket, sys
with socket.socket(socket.AF_UNIX) as relay:
    relay.connect(sys.argv[1])
    ends = {0: lambda data: relay.sendall(data), relay.fileno(): lambda data: os.write(1, data)}
    while True:
        for ready in select.select(list(ends), [], [])[0]:
            data = os.read(ready, 65536)
            if data:
                ends[ready](data)
            elif ready == 0:
                del ends[0]
                relay.shutdown(socket.SHUT_WR)
            else:
                sys.exit()
' "$1"
elif command -v socat >/dev/null 2>&1; then exec socat -t 5 STDIO "UNIX-CONNECT:$1"
else echo "needs python3 or socat" >&2; exit 127; fi
"""


def connect(connection: Connection, path: str, prefix: Sequence[str] = ()) -> paramiko.Channel:
    """Connect to a unix socket of a host.

    Args:
        connection: To the host.
        path: The socket's absolute path.
        prefix: What makes a command run as somebody else: `("sudo", "-n")`.

    Returns:
        A channel joined with the socket, to be closed.

    Raises:
        HostNotReadyError: If nothing listens there.
        HostUnreachableError: If the host does not answer.
    """
    if not prefix:
        try:
            return connection.open_unix(path)
        except ChannelRefusedError as error:
            # A host that forwards no sockets says the same as one where nothing listens.
            if connection.run(["test", "-S", path], idempotent=True).exit_code != 0:
                raise HostNotReadyError(f"{connection.place}: nothing listens at {path}") from error
    channel = connection.open_session()
    channel.exec_command(shlex.join([*prefix, "sh", "-c", RELAY, "sh", path]))
    return channel
