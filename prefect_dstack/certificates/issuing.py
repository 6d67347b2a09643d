"""From where a certificate shall come to the certificate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from prefect_dstack.certificates.acme import LETS_ENCRYPT, account_key, order
from prefect_dstack.certificates.authority import Authority
from prefect_dstack.certificates.challenges import DnsRecords, DnsSolver, HttpSolver, Solver
from prefect_dstack.certificates.files import read_files
from prefect_dstack.certificates.pem import new_key, private_pem
from prefect_dstack.certificates.renewal import RequiredCertificate
from prefect_dstack.configurations.gateway import Certificate
from prefect_dstack.gateways.gateway import Gateway

__all__ = ["issue"]


def issue(
    wanted: RequiredCertificate,
    certificate: Certificate,
    gateway: Gateway,
    *,
    now: datetime,
    directory: Path,
    authority: Callable[[], Authority],
    dns: Callable[[], DnsRecords],
) -> bytes:
    """Get a certificate, with a private key of its own.

    Args:
        wanted: The certificate.
        certificate: Where it comes from.
        gateway: The gateway that it is for.
        now: The time.
        directory: What the paths of files start from.
        authority: Finds our own authority.
        dns: Finds where DNS records are written.

    Returns:
        The private key, the certificate and its chain, PEM, as the gateway takes them.

    Raises:
        CertificateError: If it cannot be had.
    """
    if certificate.type == "file":
        return b"".join(read_files(certificate, directory, now))
    key = new_key()
    if certificate.type == "self-signed":
        return private_pem(key) + authority().issue(key, wanted.hosts, now)
    solver: Solver = DnsSolver(dns()) if certificate.challenge == "dns-01" else HttpSolver(gateway)
    url = certificate.acme_url or LETS_ENCRYPT
    account = account_key(gateway.place, url)
    return private_pem(key) + order(url, account, certificate.email, key, wanted.hosts, solver)
