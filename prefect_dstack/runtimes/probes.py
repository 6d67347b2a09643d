"""Probes of a replica, asked once."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from prefect_dstack.configurations import Probe
from prefect_dstack.errors import HostError
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.runtimes.base import Replica

__all__ = ["Answer", "ask"]


@dataclass(frozen=True)
class Answer:
    """What a probe found.

    Attributes:
        passed: Whether the replica is well.
        detail: What was asked, and what came of it.
        status: What it answered over HTTP; None: nothing.
    """

    passed: bool
    detail: str
    status: int | None = None


def ask(machine: Machine, replica: Replica, probe: Probe) -> Answer:
    """Run one probe of a replica over the machine's own connection.

    Args:
        machine: Where the replica runs.
        replica: The replica.
        probe: What to ask.

    Returns:
        Whether it passed, and what it was or why not.
    """
    if probe.type == "tcp":
        return _port_answers(machine, replica, probe.timeout)
    what = f"{probe.method.upper()} {probe.url}"
    connection = http.client.HTTPConnection("localhost", replica.port, timeout=probe.timeout)
    try:
        connection.sock = machine.connect(replica.address, replica.port, timeout=probe.timeout)
        connection.request(
            probe.method.upper(),
            probe.url,
            body=None if probe.body is None else probe.body.encode(),
            headers={header.name: header.value for header in probe.headers or ()},
        )
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException, HostError) as error:
        return Answer(passed=False, detail=f"{what}: {_words(error, probe.timeout)}")
    finally:
        connection.close()
    passed = 200 <= response.status < 300
    detail = f"{what}: {response.status} {response.reason}".rstrip()
    return Answer(passed=passed, detail=detail, status=response.status)


def _port_answers(machine: Machine, replica: Replica, timeout: float) -> Answer:
    what = f"port {replica.port}"
    try:
        machine.connect(replica.address, replica.port, timeout=timeout).close()
    except (OSError, HostError) as error:
        return Answer(passed=False, detail=f"{what}: {_words(error, timeout)}")
    return Answer(passed=True, detail=f"{what} answers")


def _words(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (ConnectionError, http.client.RemoteDisconnected)):
        return "the connection was closed without an answer"
    return " ".join(str(error).split()) or type(error).__name__
