"""Certificates from a real ACME server, for a real gateway."""

from __future__ import annotations

import socket
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_dstack.certificates.acme import account_key
from prefect_dstack.certificates.authority import new_authority
from prefect_dstack.certificates.challenges import DnsRecords
from prefect_dstack.certificates.issuing import issue
from prefect_dstack.certificates.pem import private_pem, validity
from prefect_dstack.certificates.renewal import RequiredCertificate
from prefect_dstack.configurations.gateway import Certificate
from prefect_dstack.errors import CertificateError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.hosts.ports import free_port
from tests.certificates.pebble import NameServer, Pebble
from tests.gateways.application import Application, Load
from tests.gateways.conftest import serve
from tests.polling import wait_until

pytestmark = pytest.mark.integration


def get_certificate(
    gateway: Gateway, server: Pebble, *hosts: str, names: DnsRecords | None = None, **fields: object
) -> bytes:
    certificate = Certificate.model_validate({"type": "acme", "acme_url": server.url, **fields})
    return issue(
        RequiredCertificate(hosts[0], hosts),
        certificate,
        gateway,
        now=datetime.now(UTC),
        directory=Path(),
        authority=lambda: new_authority(datetime.now(UTC)),
        dns=lambda: names or server.names,
    )


def served(gateway: Gateway, server: Pebble, host: str) -> str:
    """The serial number that clients see who trust the ACME server's authority."""
    context = ssl.create_default_context(cadata=server.root())
    port = gateway.state().https_port
    assert port is not None
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        peer = connection.getpeercert()
    assert peer is not None
    return str(peer["serialNumber"]).lower().lstrip("0")


@pytest.mark.parametrize("email", [None, "ops@example.org"])
def test_a_host_name_is_proven_by_the_gateway_itself(
    gateway: Gateway, acme: Pebble, email: str | None
) -> None:
    bundle = get_certificate(gateway, acme, "hello.example.org", email=email)
    gateway.install_certificate("hello.example.org", bundle)

    assert (
        served(gateway, acme, "hello.example.org") == validity(bundle[bundle.index(b"-----BEGIN C") :]).serial
    )
    assert gateway.state().challenges == {}
    keys = list(Path(gateway.place.directory).rglob("*.pem"))  # type: ignore[attr-defined]
    assert len(keys) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_a_wildcard_is_proven_by_dns(gateway: Gateway, acme: Pebble) -> None:
    bundle = get_certificate(gateway, acme, "*.example.org", "example.org", challenge="dns-01")
    gateway.install_certificate("wildcard_.example.org", bundle)

    serial = served(gateway, acme, "any.example.org")
    assert serial == served(gateway, acme, "example.org")
    assert "_acme-challenge.example.org" in acme.names.asked
    assert acme.names.txt == {}


def test_an_account_is_kept_and_so_is_nothing_else(gateway: Gateway, acme: Pebble) -> None:
    first = get_certificate(gateway, acme, "a.example.org")
    account = account_key(gateway.place, acme.url)
    second = get_certificate(gateway, acme, "a.example.org")

    assert private_pem(account_key(gateway.place, acme.url)) == private_pem(account)
    private = [bundle[: bundle.index(b"-----BEGIN C")] for bundle in (first, second)]
    assert private[0] != private[1], "each certificate has a key of its own"
    assert private_pem(account) not in private


def test_a_name_that_is_not_ours_is_refused_in_the_servers_words(gateway: Gateway, acme: Pebble) -> None:
    with pytest.raises(CertificateError, match=r"refuses: a\.example\.org: .*TXT"):
        get_certificate(gateway, acme, "a.example.org", names=NameServer(), challenge="dns-01")


def test_a_gateway_that_the_server_does_not_reach_gets_none(gateway: Gateway, acme: Pebble) -> None:
    gateway.change(lambda state: state.model_copy(update={"base_port": free_port()}))

    with pytest.raises(CertificateError, match=r"refuses: a\.example\.org: .*refused"):
        get_certificate(gateway, acme, "a.example.org")
    assert gateway.state().challenges == {}


def test_the_bundle_of_authorities_may_be_named_by_either_variable(
    gateway: Gateway, acme: Pebble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("SSL_CERT_FILE", str(acme.trusted))

    assert get_certificate(gateway, acme, "a.example.org")


@pytest.mark.parametrize("problem", ["down", "untrusted", "not an ACME server"])
def test_a_server_that_cannot_be_talked_with_is_named(
    gateway: Gateway, acme: Pebble, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    url = acme.url
    if problem == "down":
        url = "https://127.0.0.1:9/dir"
    elif problem == "untrusted":
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    else:
        url = acme.url.replace("/dir", "/nonce-plz")

    with pytest.raises(CertificateError) as raised:
        get_certificate(gateway, acme, "a.example.org", acme_url=url)
    assert str(raised.value).startswith(f"the ACME server at {url} ")
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
    assert "object at 0x" not in str(raised.value)


def test_a_renewal_under_load_fails_no_request(gateway: Gateway, acme: Pebble) -> None:
    application = Application()
    host = "hello.example.org"
    try:
        serve(gateway, application, hosts=[host])
        gateway.install_certificate(host, get_certificate(gateway, acme, host))
        before = served(gateway, acme, host)
        port = gateway.state().https_port
        assert port is not None
        trusting = ssl.create_default_context(cadata=acme.root())
        with Load(port, host=host, tls=trusting) as load:
            gateway.install_certificate(host, get_certificate(gateway, acme, host))
            done = load.done
            wait_until(lambda: load.done > done + 50)
            after = served(gateway, acme, host)
    finally:
        application.stop()

    assert before != after
    assert load.failures == []
