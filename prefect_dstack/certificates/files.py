"""Certificates that the user brings as files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from prefect_dstack.configurations.gateway import Certificate
from prefect_dstack.errors import CertificateError

__all__ = ["read_files"]


def read_files(certificate: Certificate, directory: Path, now: datetime) -> tuple[bytes, bytes]:
    """Read a certificate and its private key, and see that they can be used.

    Args:
        certificate: Names the files.
        directory: What relative paths start from.
        now: The time.

    Returns:
        The private key, and the certificate with its chain, PEM.

    Raises:
        CertificateError: If a file cannot be read, or does not hold what it must.
    """
    chain_path = directory / Path(certificate.cert_file or "").expanduser()
    key_path = directory / Path(certificate.key_file or "").expanduser()
    chain, key = _read(chain_path), _read(key_path)
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        hint = ", but a private key: are both exchanged?" if b"PRIVATE KEY-----" in chain else ""
        raise CertificateError(f"{chain_path}: holds no certificate in PEM{hint}") from error
    try:
        private = serialization.load_pem_private_key(key, None)
    except TypeError as error:
        raise CertificateError(
            f"{key_path}: is encrypted; write it without a password, readable by you alone"
        ) from error
    except ValueError as error:
        hint = ", but a certificate: are both exchanged?" if b"CERTIFICATE-----" in key else ""
        raise CertificateError(f"{key_path}: holds no private key in PEM{hint}") from error
    if private.public_key() != certificates[0].public_key():
        raise CertificateError(f"{key_path}: is not the key of the first certificate in {chain_path}")
    end = certificates[0].not_valid_after_utc
    if end <= now:
        raise CertificateError(f"{chain_path}: ended on {end:%Y-%m-%d}; put a newer one in its place")
    return key, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read: {error.strerror}") from error
