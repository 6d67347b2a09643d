"""Our own certificate authority, for private networks: who is given its certificate trusts what it signs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from prefect_dstack.certificates.pem import alternative_names, new_key, private_pem

__all__ = ["Authority", "new_authority"]

AUTHORITY_LIFE = timedelta(days=3650)
# As long as clients accept at most.
CERTIFICATE_LIFE = timedelta(days=397)
# Clocks differ.
MARGIN = timedelta(hours=1)

_NOTHING = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)


class Authority(BaseModel):
    """A certificate authority."""

    model_config = ConfigDict(frozen=True)

    certificate: str = Field(description="Its certificate, PEM; what clients must trust.")
    key: SecretStr = Field(description="Its private key, PEM.")

    def issue(self, key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], now: datetime) -> bytes:
        """Sign a certificate.

        Args:
            key: The private key of the certificate.
            hosts: The host names and addresses that it shall be for.
            now: The time.

        Returns:
            The certificate, PEM; clients have the authority's own.
        """
        own = x509.load_pem_x509_certificate(self.certificate.encode())
        signer = serialization.load_pem_private_key(self.key.get_secret_value().encode(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 - new_authority made it
        signed = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(own.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - MARGIN)
            .not_valid_after(min(now + CERTIFICATE_LIFE, own.not_valid_after_utc))
            .add_extension(alternative_names(hosts), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**{**_NOTHING, "digital_signature": True}), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        return signed.public_bytes(serialization.Encoding.PEM)


def new_authority(now: datetime) -> Authority:
    """Create a certificate authority that can sign certificates of servers, and no further authorities.

    Args:
        now: The time.

    Returns:
        The authority; it lasts ten years.
    """
    key = new_key()
    # The number tells the authorities of several Prefect servers apart.
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"prefect-dstack {serial % 2**32:08x}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - MARGIN)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**{**_NOTHING, "key_cert_sign": True, "crl_sign": True}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=SecretStr(private_pem(key).decode()),
    )
