"""A replica as HAProxy knows it: the same words in its configuration and on its command line."""

from __future__ import annotations

import ipaddress
import math

from prefect_dstack.gateways.quoting import word
from prefect_dstack.gateways.state import Route, RouteReplica

__all__ = [
    "SUCCESSOR",
    "backend",
    "balance",
    "milliseconds",
    "needs_reload",
    "preview_backend",
    "server",
    "server_name",
    "service_of",
]

# The next process, where a service's requests wait for replicas. No replica can have this name.
SUCCESSOR = ":successor"
# Idle connections are given up before the usual application servers give them up (gunicorn after 2 s,
# uvicorn after 5 s), so that hardly any request meets a connection that is just being closed.
IDLE = "pool-purge-delay 1s"
PORT_CHECK = "check inter 2s fastinter 500ms downinter 1s fall 2 rise 1"
# Three refused connections in a row count as failed checks: the next check that passes brings it back.
PASSIVE = "observe layer4 error-limit 3 on-error mark-down"
# A host that vanished never answers and never closes; a replica on the gateway's own machine always closes.
# Where only the port is checked, the host is gone when the check fails.
CUT_OFF = "on-marked-down shutdown-sessions"
# A replica that fails its own checks may still finish what it began. So what was sent to it is given up, and
# retried elsewhere where that is safe, only when nobody acknowledges it; keep-alive probes notice the rest.
UNACKNOWLEDGED = "tcp-ut 5s"


_BACKEND = "service:"


def backend(service: str) -> str:
    """Return the name of a service's backend."""
    return f"{_BACKEND}{word(service)}"


def preview_backend(service: str) -> str:
    """Return the name of the backend of a service's preview."""
    return f"preview:{word(service)}"


def service_of(backend: str) -> str | None:
    """Return the service of a backend; None if it is not that of a service."""
    return backend.removeprefix(_BACKEND) if backend.startswith(_BACKEND) else None


def server_name(service: str, replica: str) -> str:
    """Return a server's name in commands."""
    return f"{backend(service)}/{word(replica)}"


def balance(route: Route) -> str:
    """Choose how requests are spread.

    Least connections is best while replicas are alike, but knows weights only under load; a canary's share
    must be exact from the first request.

    Args:
        route: The route.

    Returns:
        The algorithm's name.
    """
    weights = {replica.effective_weight for replica in route.replicas.values()} - {0}
    return "roundrobin" if route.compared or len(weights) > 1 else "leastconn"


def milliseconds(seconds: float) -> str:
    """Format a duration for HAProxy."""
    return f"{max(1, math.ceil(seconds * 1000))}ms"


def server(replica: RouteReplica, route: Route) -> str:
    """Return a server's options, without its name.

    Args:
        replica: The replica.
        route: Its route.

    Returns:
        Address and options, as both `server` and `add server` take them.
    """
    address = f"[{replica.address}]" if ":" in replica.address else replica.address
    words = [word(f"{address}:{replica.port}"), f"weight {replica.effective_weight}", IDLE]
    if needs_reload(replica, route):
        words.append(UNACKNOWLEDGED)
    if route.max_concurrency is not None:
        words.append(f"maxconn {route.max_concurrency}")
    if replica.checked:
        words += [_checks(route), PASSIVE]
        if route.health_check is None and _is_remote(replica):
            words.append(CUT_OFF)
    return " ".join(words)


def needs_reload(replica: RouteReplica, route: Route) -> bool:
    """Return whether a replica has an option that only the configuration can give it.

    Args:
        replica: The replica.
        route: Its route.

    Returns:
        Whether HAProxy refuses to add it while it runs.
    """
    return _is_remote(replica) and not (replica.checked and route.health_check is None)


def _is_remote(replica: RouteReplica) -> bool:
    return not ipaddress.ip_address(replica.address).is_loopback


def _checks(route: Route) -> str:
    check = route.health_check
    if check is None:
        return PORT_CHECK
    interval, quick = milliseconds(check.interval), milliseconds(min(check.interval, 1.0))
    return f"check inter {interval} fastinter {quick} downinter {quick} fall {check.fall} rise {check.rise}"
