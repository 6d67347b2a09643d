"""Certificates: what gateways have, what they lack, and the task that gets one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.blocks import DstackAuthority
from prefect_dstack.certificates.authority import Authority, new_authority
from prefect_dstack.certificates.challenges import DnsRecords
from prefect_dstack.certificates.files import read_files
from prefect_dstack.certificates.issuing import issue
from prefect_dstack.certificates.pem import Validity, validity
from prefect_dstack.certificates.renewal import Wanted, is_due, wanted
from prefect_dstack.configurations import GatewayConfiguration
from prefect_dstack.domain.record import now
from prefect_dstack.errors import CertificateError, ConfigurationError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import Route
from prefect_dstack.tasks import documents, gateway_places
from prefect_dstack.tasks.inventory import inventory
from prefect_dstack.tasks.retrying import may_help

__all__ = [
    "CertificateStatus",
    "authority",
    "certificates",
    "check_files",
    "issue_certificate",
    "lacking",
    "publish_failed",
]

AUTHORITY = "default"


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


def certificates(gateway_name: str) -> list[CertificateStatus]:
    """List the certificates of a gateway.

    Args:
        gateway_name: The gateway.

    Returns:
        What it has, whether or not it needs it.
    """
    gateway = gateway_places.gateway(gateway_name)
    found = [(name, _validity(gateway, name)) for name in gateway.state().certificates]
    return [
        CertificateStatus(name=name, hosts=it.hosts, serial=it.serial, expires_at=it.not_after)
        for name, it in found
        if it is not None
    ]


def lacking(
    gateway_name: str, routes: Sequence[Route], *, force: bool = False
) -> list[tuple[Wanted, CertificateStatus | None]]:
    """List the certificates that routes need and the gateway lacks, or that are due to be renewed.

    Args:
        gateway_name: The gateway.
        routes: The routes.
        force: Whether every certificate counts as due.

    Returns:
        Each with the one that serves until then, if that is still good.
    """
    configuration = gateway_places.configuration_of(gateway_name)
    certificate = configuration.effective_certificate
    if certificate is None:
        return []
    gateway = gateway_places.gateway(gateway_name)
    found: list[tuple[Wanted, CertificateStatus | None]] = []
    for item in wanted(certificate, configuration.domain, gateway_places.address(gateway_name), routes):
        known = _validity(gateway, item.name)
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


def check_files(
    configuration: GatewayConfiguration, routes: Sequence[Route], *, must_exist: bool = False
) -> None:
    """See that a certificate which a person brings can be used, and is for the names of routes.

    Args:
        configuration: Of the gateway.
        routes: The routes; only those with HTTPS and a host name count.
        must_exist: Whether its files must be on this machine; else, where they are not, the certificate
            that the gateway has is looked at.

    Raises:
        CertificateError: If it cannot be used, or clients would not accept it.
    """
    certificate, name = configuration.effective_certificate, configuration.name or ""
    if certificate is None or certificate.type != "file":
        return
    try:
        known: Validity | None = validity(read_files(certificate, configuration.directory, now())[1])
    except CertificateError:
        if must_exist:
            raise
        state = gateway_places.state(name)
        installed = [] if state is None else list(state.certificates)
        known = _validity(gateway_places.gateway(name), installed[0]) if installed else None
    if known is None:
        return
    for route in routes:
        missing = [host for host in route.hosts if route.https_redirect and not known.covers(host)]
        if missing:
            raise CertificateError(
                f"gateway '{name}': its certificate is for {', '.join(known.hosts) or 'no host name'}, "
                f"and clients of '{route.service}' ask for {', '.join(missing)}: bring one for that name too"
            )


@task(
    name="issue-certificate",
    task_run_name="issue-certificate {name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=may_help,
)
def issue_certificate(gateway_name: str, name: str, hosts: tuple[str, ...]) -> datetime:
    """Get a certificate and install it at a gateway; the one before it serves until then.

    Args:
        gateway_name: The gateway.
        name: What it is called there.
        hosts: The host names that it shall be for.

    Returns:
        When it ends.

    Raises:
        CertificateError: If it cannot be had.
    """
    configuration = gateway_places.configuration_of(gateway_name)
    certificate = configuration.effective_certificate
    if certificate is None:
        raise CertificateError(f"gateway '{gateway_name}' is configured to have no certificate")
    gateway = gateway_places.gateway(gateway_name)
    bundle = issue(
        Wanted(name, hosts),
        certificate,
        gateway,
        now=now(),
        directory=configuration.directory,
        authority=authority,
        dns=_dns,
    )
    gateway.install_certificate(name, bundle)
    known = _validity(gateway, name)
    if known is None:
        raise CertificateError(f"gateway '{gateway_name}': certificate '{name}' was installed and is gone")
    get_run_logger().info(
        "gateway %s: certificate for %s, until %s",
        *(gateway_name, ", ".join(known.hosts), f"{known.not_after:%Y-%m-%d}"),
    )
    return known.not_after


def authority() -> Authority:
    """Find the certificate authority of this Prefect API, or make it.

    Returns:
        The authority.
    """
    known = documents.load(DstackAuthority, AUTHORITY)
    if known is not None:
        return Authority(certificate=known.certificate, key=known.key)
    made = new_authority(now())
    mine = documents.create(DstackAuthority(certificate=made.certificate, key=made.key), AUTHORITY)
    # Somebody else may have made one at the same time; the first counts.
    return made if mine else authority()


def publish_failed(gateway_name: str, item: Wanted, status: CertificateStatus | None, reason: str) -> None:
    """Emit the event of a certificate that could not be renewed.

    Args:
        gateway_name: The gateway.
        item: The certificate.
        status: The one that serves meanwhile; None: there is none.
        reason: Why it failed, in one line.
    """
    emit_event(
        event="prefect-dstack.certificate.renewal-failed",
        resource={
            "prefect.resource.id": f"prefect-dstack.certificate.{gateway_name}.{item.name}",
            "prefect.resource.name": item.name,
        },
        payload={
            "gateway": gateway_name,
            "hosts": list(item.hosts),
            "expires_at": None if status is None else status.expires_at.isoformat(),
            "reason": reason,
        },
    )


def _validity(gateway: Gateway, name: str) -> Validity | None:
    chain = gateway.certificate(name)
    return None if chain is None else validity(chain)


def _dns() -> DnsRecords:
    account = inventory().aws
    if account is None:
        raise ConfigurationError(
            "dns-01 writes to Route 53: save a DstackAwsBackend block named 'default', or use http-01",
            key="certificate.challenge",
        )
    from prefect_dstack.backends.aws.dns import TxtRecords

    return TxtRecords(account.account.aws)
