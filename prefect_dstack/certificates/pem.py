"""Private keys and certificates as text."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.errors import CertificateError

__all__ = ["Validity", "alternative_names", "new_key", "private_pem", "signing_request", "validity"]


class Validity(BaseModel):
    """For what, and for how long, a certificate is good."""

    model_config = ConfigDict(frozen=True)

    serial: str = Field(description="The serial number, in hexadecimal.")
    hosts: tuple[str, ...] = Field(description="The host names and addresses that it is for.")
    not_before: datetime = Field(description="When it begins.")
    not_after: datetime = Field(description="When it ends.")

    def covers(self, host: str) -> bool:
        """Return whether it is for a host name or an address; a wildcard is for one label.

        Args:
            host: For example `hello.example.com`.

        Returns:
            Whether a client that asks for it accepts this certificate.
        """
        _, _, parent = host.partition(".")
        return host in self.hosts or f"*.{parent}" in self.hosts


def new_key() -> ec.EllipticCurvePrivateKey:
    """Create a private key.

    Returns:
        One on the curve P-256, which every client knows.
    """
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Serialize a private key.

    Args:
        key: The key.

    Returns:
        PEM, in clear.
    """
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signing_request(key: ec.EllipticCurvePrivateKey, hosts: Sequence[str]) -> bytes:
    """Create a certificate signing request.

    Args:
        key: Its private key.
        hosts: The host names that it shall be for.

    Returns:
        A certificate signing request, PEM.
    """
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(alternative_names(hosts), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """Return the hosts of a certificate.

    Args:
        hosts: Host names and addresses.

    Returns:
        The extension.
    """
    return x509.SubjectAlternativeName([_general_name(host) for host in hosts])


def validity(chain: bytes) -> Validity:
    """Read for what, and for how long, a certificate is good.

    Args:
        chain: The certificate, PEM; what follows it is not looked at.

    Returns:
        Its validity.

    Raises:
        CertificateError: If it is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(chain)
    except ValueError as error:
        raise CertificateError(f"not a certificate in PEM: {error}") from error
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return Validity(
        serial=f"{certificate.serial_number:x}",
        hosts=(*(name.lower() for name in names.get_values_for_type(x509.DNSName)), *addresses),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
