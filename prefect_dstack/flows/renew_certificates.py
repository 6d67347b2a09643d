"""The certificates of gateways, issued when they are missing and renewed before they end."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import get_run_logger

from prefect_dstack.certificates.renewal import Wanted
from prefect_dstack.errors import CertificateError, PrefectDstackError
from prefect_dstack.flows.goals import run_id
from prefect_dstack.flows.served import served_flow
from prefect_dstack.gateways.state import Route
from prefect_dstack.tasks import gateway_places
from prefect_dstack.tasks.certificates import (
    CertificateStatus,
    certificates,
    issue_certificate,
    lacking,
    publish_failed,
)
from prefect_dstack.tasks.inventory import inventory
from prefect_dstack.tasks.locks import lock

__all__ = ["ensure_certificates", "renew_certificates"]

# Seconds for which another flow run may hold the certificates of a gateway.
PATIENCE = 600.0


@served_flow(name="renew-certificates")
def renew_certificates(gateway: str | None = None, force: bool = False) -> list[CertificateStatus]:
    """Renew the certificates of which two thirds of the life are over, and get those that are missing.

    A certificate that cannot be renewed goes on being used, and does not hold up the others.

    Args:
        gateway: Only this gateway's; default: every gateway's.
        force: Renew them all.

    Returns:
        The certificates that the gateways have then.

    Raises:
        CertificateError: At the end, if one could not be renewed; an event tells each.
    """
    problems: list[str] = []
    found: list[CertificateStatus] = []
    for name in [gateway] if gateway is not None else [gateway_places.LOCAL, *inventory().gateways]:
        try:
            state = gateway_places.state(name)
            if state is None or state.https_port is None:
                continue
            problems += _renew(name, list(state.routes.values()), force=force)
            found += certificates(name)
        except PrefectDstackError as error:
            problems.append(f"gateway {name}: {error}")
    if problems:
        raise CertificateError("; ".join(problems))
    return found


def ensure_certificates(gateway: str, routes: Sequence[Route]) -> None:
    """Get the certificates that routes need and the gateway lacks; renew those that are due.

    Args:
        gateway: The gateway.
        routes: The routes.

    Raises:
        CertificateError: If one is missing and cannot be had. One that only cannot be renewed yet is
            told by a warning and an event.
    """
    for problem in _renew(gateway, routes, may_fail=False):
        get_run_logger().warning("%s", problem)


def _renew(gateway: str, routes: Sequence[Route], *, force: bool = False, may_fail: bool = True) -> list[str]:
    """Renew what is due, and tell what could not be; raise for what is missing unless it `may_fail`."""
    if not lacking(gateway, routes, force=force):
        return []
    problems: list[str] = []
    # Whoever waited here finds what the one before has got.
    with lock(f"certificates-{gateway}", run_id(), lambda: None, get_run_logger().info, PATIENCE):
        for item, status in lacking(gateway, routes, force=force):
            try:
                issue_certificate(gateway, item.name, item.hosts)
            except PrefectDstackError as error:
                publish_failed(gateway, item, status, str(error))
                if status is None and not may_fail:
                    raise
                problems.append(_problem(gateway, item, status, error))
    return problems


def _problem(gateway: str, item: Wanted, status: CertificateStatus | None, error: Exception) -> str:
    meanwhile = "there is none" if status is None else f"the old one is good for {status.days_left()} days"
    hosts = ", ".join(item.hosts) or item.name
    return f"gateway {gateway}: no new certificate for {hosts}, {meanwhile}: {error}"
