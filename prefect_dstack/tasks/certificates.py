"""The task that gets a certificate."""

from __future__ import annotations

from datetime import datetime

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_dstack.certificates.issuing import issue
from prefect_dstack.certificates.renewal import RequiredCertificate
from prefect_dstack.domain.record import now
from prefect_dstack.errors import CertificateError
from prefect_dstack.infrastructure.certificates import validity_of
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.tasks.retries import is_retryable

__all__ = ["issue_certificate"]


@task(
    name="issue-certificate",
    task_run_name="issue-certificate {name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_retryable,
)
def issue_certificate(
    infrastructure: Infrastructure, gateway: ManagedGateway, name: str, hosts: tuple[str, ...]
) -> datetime:
    """Get a certificate and install it at a gateway; the one before it serves until then.

    Args:
        infrastructure: Where authorities and DNS records are.
        gateway: The gateway.
        name: What it is called there.
        hosts: The host names that it is to be for.

    Returns:
        When it ends.

    Raises:
        CertificateError: If it cannot be had.
    """
    configuration = gateway.configuration
    certificate = configuration.effective_certificate
    if certificate is None:
        raise CertificateError(f"gateway '{gateway.name}' is configured to have no certificate")
    bundle = issue(
        RequiredCertificate(name, hosts),
        certificate,
        gateway.control,
        now=now(),
        directory=configuration.directory,
        authority=infrastructure.sources.authority,
        dns=infrastructure.txt_records,
    )
    gateway.control.install_certificate(name, bundle)
    known = validity_of(gateway.control, name)
    if known is None:
        raise CertificateError(f"gateway '{gateway.name}': certificate '{name}' was installed and is gone")
    get_run_logger().info(
        "gateway %s: certificate for %s, until %s",
        *(gateway.name, ", ".join(known.hosts), f"{known.not_after:%Y-%m-%d}"),
    )
    return known.not_after
