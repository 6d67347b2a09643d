"""The certificates of gateways, issued when they are missing and renewed before they end."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import get_run_logger

from prefect_dstack.certificates.renewal import RequiredCertificate
from prefect_dstack.errors import CertificateError, PrefectDstackError
from prefect_dstack.gateways.state import Route
from prefect_dstack.infrastructure.certificates import CertificateStatus, certificates, lacking
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.publication import publish_certificate_failed
from prefect_dstack.services.run import flow_run_id
from prefect_dstack.store.locks import lock
from prefect_dstack.tasks.certificates import issue_certificate

__all__ = ["ensure_certificates", "renew"]

# Seconds for which another flow run may hold the certificates of a gateway.
PATIENCE = 600.0


def renew(
    infrastructure: Infrastructure, names: Sequence[str], *, force: bool = False
) -> list[CertificateStatus]:
    """Renew the certificates of gateways that are due, and get those that are missing.

    Args:
        infrastructure: Where the gateways are.
        names: The gateways.
        force: Renew them all.

    Returns:
        The certificates that the gateways have then.

    Raises:
        CertificateError: At the end, if one could not be renewed.
    """
    problems: list[str] = []
    found: list[CertificateStatus] = []
    for name in names:
        try:
            gateway = infrastructure.gateway(name)
            state = gateway.state()
            if state is None or state.https_port is None:
                continue
            problems += _renew(infrastructure, gateway, list(state.routes.values()), force=force)
            found += certificates(gateway)
        except PrefectDstackError as error:
            problems.append(f"gateway {name}: {error}")
    if problems:
        raise CertificateError("; ".join(problems))
    return found


def ensure_certificates(
    infrastructure: Infrastructure, gateway: ManagedGateway, routes: Sequence[Route]
) -> None:
    """Get the certificates that routes need and the gateway lacks; renew those that are due.

    Args:
        infrastructure: Where authorities and DNS records are.
        gateway: The gateway.
        routes: The routes.

    Raises:
        CertificateError: If one is missing that services need, and cannot be had. One that only cannot be
            renewed yet, or is for the address of all models, is reported by a warning and an event.
    """
    for problem in _renew(infrastructure, gateway, routes, may_fail=False):
        get_run_logger().warning("%s", problem)


def _renew(
    infrastructure: Infrastructure,
    gateway: ManagedGateway,
    routes: Sequence[Route],
    *,
    force: bool = False,
    may_fail: bool = True,
) -> list[str]:
    """Renew what is due, and return what could not be; raise for what is missing unless it `may_fail`."""
    if not lacking(gateway, routes, force=force):
        return []
    problems: list[str] = []
    log = get_run_logger().info
    # Whoever waited here finds what the one before has got.
    with lock(f"certificates-{gateway.name}", flow_run_id(), lambda: None, log, PATIENCE):
        for item, status in lacking(gateway, routes, force=force):
            try:
                issue_certificate(infrastructure, gateway, item.name, item.hosts)
            except PrefectDstackError as error:
                publish_certificate_failed(gateway.name, item, status, str(error))
                if status is None and item.vital and not may_fail:
                    raise
                problems.append(_problem(gateway.name, item, status, error))
    return problems


def _problem(
    gateway: str, item: RequiredCertificate, status: CertificateStatus | None, error: Exception
) -> str:
    meanwhile = "there is none" if status is None else f"the old one is good for {status.days_left()} days"
    hosts = ", ".join(item.hosts) or item.name
    return f"gateway {gateway}: no new certificate for {hosts}, {meanwhile}: {error}"
