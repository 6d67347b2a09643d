"""Our own certificate authority, as clients judge it."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from prefect_dstack.certificates.authority import Authority, new_authority
from prefect_dstack.certificates.pem import new_key, private_pem, validity
from tests.certificates.conftest import NOW


def handshake(directory: Path, authority: Authority, hosts: list[str], asked: str, trusted: str) -> str:
    """Shake hands with a server that has a certificate for hosts, and trust only one authority."""
    key, now = new_key(), datetime.now(UTC)
    (directory / "bundle.pem").write_bytes(private_pem(key) + authority.issue(key, hosts, now))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "bundle.pem")
    client = ssl.create_default_context(cadata=trusted)
    # What OpenSSL may, and browsers do: look at every extension.
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(there, server_side=True).close()
        except (ssl.SSLError, OSError):
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=asked) as connection:
            return str(connection.version())
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize(
    ("hosts", "asked"),
    [
        (["*.example.test", "example.test"], "hello.example.test"),
        (["*.example.test", "example.test"], "example.test"),
        (["127.0.0.1"], "127.0.0.1"),
        (["::1"], "::1"),
    ],
)
def test_who_trusts_it_trusts_what_it_signs(tmp_path: Path, hosts: list[str], asked: str) -> None:
    authority = new_authority(datetime.now(UTC))

    assert handshake(tmp_path, authority, hosts, asked, authority.certificate) == "TLSv1.3"


def test_nobody_else_does(tmp_path: Path) -> None:
    authority, other = (new_authority(datetime.now(UTC)) for _ in range(2))

    with pytest.raises(ssl.SSLCertVerificationError, match="issuer"):
        handshake(tmp_path, authority, ["a.test"], "a.test", other.certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path, authority, ["a.test"], "b.test", authority.certificate)


def test_signs_servers_only_and_no_longer_than_it_lives() -> None:
    authority = new_authority(NOW)
    own = x509.load_pem_x509_certificate(authority.certificate.encode())
    late = own.not_valid_after_utc - timedelta(days=1)

    first, last = (validity(authority.issue(new_key(), ["a.test"], moment)) for moment in (NOW, late))

    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert first.not_after == NOW + timedelta(days=397)
    assert last.not_after == own.not_valid_after_utc
    assert first.serial != last.serial


def test_keeps_its_key_to_itself() -> None:
    authority = new_authority(NOW)

    assert "PRIVATE" not in repr(authority) + authority.certificate + authority.model_dump_json()
    assert b"PRIVATE" not in authority.issue(new_key(), ["a.test"], NOW)
