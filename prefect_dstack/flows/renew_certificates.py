"""Renewing the certificates of gateways."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.flows.served import served_flow
from prefect_dstack.infrastructure.certificates import CertificateStatus
from prefect_dstack.services.certificates import renew
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["arenew_certificates", "renew_certificates"]


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
        CertificateError: At the end, if one could not be renewed; an event reports each.
    """
    infrastructure = resolve_infrastructure()
    names = infrastructure.gateway_names if gateway is None else [gateway]
    return renew(infrastructure, names, force=force)


arenew_certificates = asynchronous(renew_certificates)
