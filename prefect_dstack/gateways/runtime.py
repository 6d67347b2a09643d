"""Talks with HAProxy's master process, and through it with its workers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.latency import Tally

__all__ = [
    "Connection",
    "Workers",
    "ask",
    "parse_durations",
    "parse_held",
    "parse_statistics",
    "parse_workers",
]

_HELD = re.compile(r"^(\S+) (\d+) (\d+)$", re.MULTILINE)
_TABLE = re.compile(r"^# table: durations/(\S+), type:")
_DURATION = re.compile(r" key=(\S+)/(\d+) .* conn_cnt=(\d+) gpc0=(\d+)$")
_WORKER = re.compile(r"^(\d+)\s+worker\s")


class Connection(Protocol):
    """A stream to the master socket: a socket, or a channel over SSH."""

    def sendall(self, data: bytes, /) -> object:
        """Send everything."""

    def recv(self, size: int, /) -> bytes:
        """Receive something; nothing at the end."""

    def close(self) -> object:
        """Close it."""


@dataclass(frozen=True)
class Workers:
    """The processes that handle requests.

    Attributes:
        current: Process ids of those with the present configuration.
        old: Those of earlier configurations, that finish what they began.
    """

    current: tuple[int, ...]
    old: tuple[int, ...]


def ask(connection: Connection, command: str) -> str:
    """Run one command and close the connection.

    Args:
        connection: To the master socket.
        command: The command; a payload follows it after ` <<` and a newline. Several are lines.

    Returns:
        The answer.

    Raises:
        GatewayError: If the connection breaks or nothing comes in time.
    """
    with closing(connection):
        try:
            connection.sendall(f"{command}\nquit\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            shown = command.split("<<", 1)[0].strip()
            raise GatewayError(
                f"the gateway did not answer '{shown}': {error or type(error).__name__}"
            ) from error
    return answer.decode(errors="replace").strip()


def parse_workers(answer: str) -> Workers:
    """Read the answer to `show proc`."""
    current: list[int] = []
    old: list[int] = []
    section = current
    for line in answer.splitlines():
        if line.startswith("# old workers"):
            section = old
        elif match := _WORKER.match(line):
            section.append(int(match[1]))
    return Workers(tuple(current), tuple(old))


def parse_statistics(answer: str) -> Iterator[dict[str, str]]:
    """Read the answer to `show stat`, one mapping a line."""
    return csv.DictReader(io.StringIO(answer.removeprefix("# ")))


def parse_held(answer: str) -> dict[str, tuple[int, int]]:
    """Read the answer to `show held`: by service, the requests that wait, and all that found no replica.

    A process of an earlier version, which holds nothing, does not know the command.
    """
    return {service: (int(held), int(ever)) for service, held, ever in _HELD.findall(answer)}


def parse_durations(answer: str) -> dict[str, dict[str, dict[int, Tally]]]:
    """Read the answers to `show table` of any number of services: tallies by service, replica and bucket.

    A process of an earlier version has no tables, or others, of which nothing is read.
    """
    found: dict[str, dict[str, dict[int, Tally]]] = {}
    replicas: dict[str, dict[int, Tally]] = {}
    for line in answer.splitlines():
        if header := _TABLE.match(line):
            replicas = found.setdefault(header[1], {})
        elif entry := _DURATION.search(line):
            replica, bucket, answers, units = entry.groups()
            replicas.setdefault(replica, {})[int(bucket)] = Tally(int(answers), int(units))
    return found
