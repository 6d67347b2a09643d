"""The certificates of gateways: what they have, and what they lack."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.certificates.files import read_files
from prefect_dstack.certificates.pem import Validity, validity
from prefect_dstack.certificates.renewal import RequiredCertificate, is_due, wanted
from prefect_dstack.domain.record import now
from prefect_dstack.errors import CertificateError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import Route
from prefect_dstack.infrastructure.gateways import ManagedGateway

__all__ = ["CertificateStatus", "certificates", "check_files", "lacking", "validity_of"]


class CertificateStatus(BaseModel):
    """A certificate that a gateway has."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="What it is called at the gateway.")
    hosts: tuple[str, ...] = Field(description="The host names and addresses that it is for.")
    serial: str = Field(description="The serial number, in hexadecimal.")
    expires_at: datetime = Field(description="When it ends.")

    def days_left(self) -> int:
        """Count the days until it ends.

        Returns:
            Whole days; negative if it has ended.
        """
        return (self.expires_at - now()).days


def certificates(gateway: ManagedGateway) -> list[CertificateStatus]:
    """List the certificates of a gateway.

    Args:
        gateway: The gateway.

    Returns:
        What it has, whether or not it needs it.
    """
    control = gateway.control
    found = [(name, validity_of(control, name)) for name in control.state().certificates]
    return [
        CertificateStatus(name=name, hosts=it.hosts, serial=it.serial, expires_at=it.not_after)
        for name, it in found
        if it is not None
    ]


def lacking(
    gateway: ManagedGateway, routes: Sequence[Route], *, force: bool = False
) -> list[tuple[RequiredCertificate, CertificateStatus | None]]:
    """List the certificates that routes need and the gateway lacks, or that are due to be renewed.

    Args:
        gateway: The gateway.
        routes: The routes.
        force: Whether every certificate counts as due.

    Returns:
        Each with the one that serves until then, if that is still good.
    """
    configuration = gateway.configuration
    certificate = configuration.effective_certificate
    if certificate is None:
        return []
    control = gateway.control
    state = gateway.state()
    models = None
    if state is not None and any(route.model for route in routes):
        models = state.models_host or (gateway.address if state.models_port else None)
    found: list[tuple[RequiredCertificate, CertificateStatus | None]] = []
    for item in wanted(certificate, configuration.domain, gateway.address, routes, models):
        known = validity_of(control, item.name)
        usable = known is not None and known.not_after > now() and all(map(known.covers, item.hosts))
        if known is None or not usable:
            found.append((item, None))
            continue
        due = is_due(known, now())
        if certificate.type == "file":
            try:
                _, chain = read_files(certificate, configuration.directory, now())
            except CertificateError:
                # It may be on another machine, which installs it.
                due = force or due
            else:
                due = force or validity(chain) != known
        if due or force:
            status = CertificateStatus(
                name=item.name, hosts=known.hosts, serial=known.serial, expires_at=known.not_after
            )
            found.append((item, status))
    return found


def check_files(gateway: ManagedGateway, routes: Sequence[Route], *, must_exist: bool = False) -> None:
    """Check that a certificate which a person brings can be used, and is for the names of routes.

    Args:
        gateway: The gateway.
        routes: The routes; only those with HTTPS and a host name count.
        must_exist: Whether its files must be on this machine; else, where they are not, the certificate
            that the gateway has is looked at.

    Raises:
        CertificateError: If it cannot be used, or clients would not accept it.
    """
    configuration = gateway.configuration
    certificate = configuration.effective_certificate
    if certificate is None or certificate.type != "file":
        return
    try:
        known: Validity | None = validity(read_files(certificate, configuration.directory, now())[1])
    except CertificateError:
        if must_exist:
            raise
        state = gateway.state()
        installed = [] if state is None else list(state.certificates)
        known = validity_of(gateway.control, installed[0]) if installed else None
    if known is None:
        return
    for route in routes:
        missing = [host for host in route.hosts if route.https_redirect and not known.covers(host)]
        if missing:
            raise CertificateError(
                f"gateway '{gateway.name}': its certificate is for "
                f"{', '.join(known.hosts) or 'no host name'}, and clients of '{route.service}' ask for "
                f"{', '.join(missing)}: bring one for that name too"
            )


def validity_of(gateway: Gateway, name: str) -> Validity | None:
    """Return for which names and how long an installed certificate is good; None if there is none.

    Args:
        gateway: The gateway.
        name: What the certificate is called there.
    """
    chain = gateway.certificate(name)
    return None if chain is None else validity(chain)
