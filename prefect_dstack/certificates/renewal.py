"""Which certificates a gateway needs, and when a new one is due: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from prefect_dstack.certificates.pem import Validity
from prefect_dstack.configurations.gateway import Certificate
from prefect_dstack.gateways.state import Route

__all__ = ["RequiredCertificate", "due_at", "is_due", "wanted"]

# Host names have no underscore: none of them can be taken for one of these.
FILE = "file_"
ADDRESS = "address_"
WILDCARD = "wildcard_."


@dataclass(frozen=True)
class RequiredCertificate:
    """A certificate that a gateway needs.

    Attributes:
        name: What it is called at the gateway.
        hosts: The host names or addresses that it must be for; empty where a file says it.
        vital: Whether services cannot be reached without it.
    """

    name: str
    hosts: tuple[str, ...]
    vital: bool = True


def wanted(
    certificate: Certificate,
    domain: str | None,
    address: str,
    routes: Iterable[Route],
    models: str | None = None,
) -> list[RequiredCertificate]:
    """List the certificates that routes need.

    Args:
        certificate: Where certificates come from.
        domain: The domain of the gateway.
        address: Where the gateway is reached, for routes without host names.
        routes: The routes; only those with HTTPS count.
        models: The host name or address at which the models of all services are; None: nowhere.

    Returns:
        The certificates, each once: one per host name, or a wildcard for all that are directly below the
        domain where that costs no more, or the one that a file holds.
    """
    if certificate.type == "file":
        return [RequiredCertificate(FILE, ())]
    together = certificate.type == "self-signed" or certificate.challenge == "dns-01"
    found: dict[str, RequiredCertificate] = {}
    for route in routes:
        if route.https_redirect:
            for host in route.hosts or (address,):
                one = _wanted(host, domain if together else None, address)
                found[one.name] = one
    if models is not None:
        # Services have their own names: a name that nobody has led to the gateway yet must not stop them.
        one = _wanted(models, domain if together else None, address)
        found.setdefault(one.name, replace(one, vital=False))
    return list(found.values())


def _wanted(host: str, domain: str | None, address: str) -> RequiredCertificate:
    if domain is not None and domain in (host, host.partition(".")[2]):
        return RequiredCertificate(WILDCARD + domain, (f"*.{domain}", domain))
    return RequiredCertificate(ADDRESS if host == address else host, (host,))


def due_at(validity: Validity) -> datetime:
    """Return when a certificate is to be renewed.

    Args:
        validity: Of the certificate.

    Returns:
        When two thirds of its life are over.
    """
    return validity.not_before + (validity.not_after - validity.not_before) * 2 / 3


def is_due(validity: Validity, now: datetime) -> bool:
    """Return whether a certificate is to be renewed.

    Args:
        validity: Of the certificate.
        now: The time.

    Returns:
        Whether two thirds of its life are over.
    """
    return due_at(validity) <= now
