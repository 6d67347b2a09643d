"""Certificates that the user brings: what can be used, and what is said of the rest."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from prefect_dstack.certificates.authority import new_authority
from prefect_dstack.certificates.files import read_files
from prefect_dstack.certificates.pem import new_key, private_pem, validity
from prefect_dstack.configurations.gateway import Certificate
from prefect_dstack.errors import CertificateError
from tests.certificates.conftest import NOW

CERTIFICATE = Certificate(type="file", cert_file="cert.pem", key_file="key.pem")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    key = new_key()
    authority = new_authority(NOW)
    chain = authority.issue(key, ["www.example.com"], NOW) + authority.certificate.encode()
    (tmp_path / "cert.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    return tmp_path


def test_what_belongs_together_is_read_with_its_chain(directory: Path) -> None:
    key, chain = read_files(CERTIFICATE, directory, NOW)

    assert key == (directory / "key.pem").read_bytes()
    assert chain.count(b"BEGIN CERTIFICATE") == 2
    assert validity(chain).hosts == ("www.example.com",)


def test_what_stands_around_certificates_is_left_out(directory: Path) -> None:
    cert = directory / "cert.pem"
    cert.write_bytes(b"Bag Attributes: friendlyName\n\n" + cert.read_bytes() + b"\n\n")

    assert read_files(CERTIFICATE, directory, NOW)[1].startswith(b"-----BEGIN")


def break_key(directory: Path) -> None:
    (directory / "key.pem").write_bytes(private_pem(new_key()))


def encrypt_key(directory: Path) -> None:
    password = serialization.BestAvailableEncryption(b"hunter2")
    text = new_key().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password)
    (directory / "key.pem").write_bytes(text)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cert.pem", lambda it: (it / "cert.pem").unlink(), "cannot be read: No such file"),
        ("key.pem", lambda it: (it / "key.pem").unlink(), "cannot be read: No such file"),
        ("cert.pem", lambda it: (it / "cert.pem").write_text("rubbish"), "holds no certificate in PEM"),
        ("key.pem", lambda it: (it / "key.pem").write_text("rubbish"), "holds no private key in PEM"),
        ("key.pem", break_key, "is not the key of the first certificate"),
        ("key.pem", encrypt_key, "is encrypted; write it without a password"),
    ],
)
def test_what_cannot_be_used_is_named(directory: Path, name: str, change: object, message: str) -> None:
    change(directory)  # type: ignore[operator]

    with pytest.raises(CertificateError) as raised:
        read_files(CERTIFICATE, directory, NOW)
    assert str(raised.value).startswith(f"{directory / name}: {message}")
    assert "\n" not in str(raised.value)


def test_what_has_ended_is_refused(directory: Path) -> None:
    with pytest.raises(CertificateError, match=r"cert\.pem: ended on 2027-04-02; put a newer one"):
        read_files(CERTIFICATE, directory, NOW + timedelta(days=400))
