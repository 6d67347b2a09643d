"""HTTPS by itself: what a user of a gateway gets, and what happens when no certificate can be had."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack import create_gateway, delete_gateway, deploy_service, renew_certificates, stop_service
from prefect_dstack.certificates.authority import Authority, new_authority
from prefect_dstack.certificates.pem import new_key, private_pem
from prefect_dstack.errors import CertificateError, ConfigurationError, UnsupportedKeyError
from prefect_dstack.flows.fleets import apply_fleet, delete_fleet
from prefect_dstack.hosts.ports import free_port
from prefect_dstack.store.authority import authority
from prefect_dstack.store.sources import resolve_infrastructure
from tests.certificates.pebble import missing, pebble
from tests.command_line import CommandLine
from tests.flows.conftest import hello
from tests.flows.lab import FLEET, GATEWAY, Lab
from tests.gateways.application import Load, request
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

ECHO = Path(__file__).with_name("echo.py")
Create = Callable[..., dict[str, Any]]


@pytest.fixture
def gateway(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[Create]:
    """Creates the gateway of the test, on this machine; it and its service are removed at the end."""
    gateway = f"g{name}"
    made = {
        "type": "gateway",
        "name": gateway,
        "port": free_port(),
        "https_port": free_port(),
        "domain": "example.org",
    }

    def create(certificate: dict[str, Any] | None, **keys: Any) -> dict[str, Any]:
        configuration = {**made, "certificate": certificate, **keys}
        create_gateway({key: value for key, value in configuration.items() if value != "left out"})
        return configuration

    yield create
    if gateway in resolve_infrastructure().configured_gateways:
        if resolve_infrastructure().gateway(gateway).state().routes:  # type: ignore[union-attr]
            stop_service(name)
        delete_gateway(gateway)


def peer(port: int, host: str, trusted: str, address: str = "127.0.0.1") -> dict[str, Any]:
    """What clients that trust one authority are shown, over HTTP/2 if they can have it."""
    context = ssl.create_default_context(cadata=trusted)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((address, port), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"
        found = connection.getpeercert()
    assert found is not None
    return dict(found)


def runs_named(server: PrefectServer, task: str) -> list[str]:
    runs = server.ask("/task_runs/filter", task_runs={"name": {"like_": task}})
    return [run["state"]["type"] for run in runs]


def test_a_fresh_domain_has_a_valid_chain_within_30_seconds(
    gateway: Create, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer
) -> None:
    with acme(tmp_path, monkeypatch) as server:
        made = gateway({"type": "acme", "acme_url": server.url}, port=server.http_port)
        host = f"{name}.example.org"

        began = time.monotonic()
        endpoint = deploy_service(hello(name, gateway=made["name"]))
        shown = peer(made["https_port"], host, server.root())
        took = time.monotonic() - began

        assert took < 30
        assert shown["subjectAltName"] == (("DNS", host),)
        assert endpoint.url == f"https://{host}:{made['https_port']}"
        redirect = request(made["port"], "/a?b=c", host=host)
        assert (redirect.status, redirect.headers["location"]) == (308, f"{endpoint.url}/a?b=c")
        assert runs_named(prefect_server, f"issue-certificate {host}") == ["COMPLETED"]

        # A second deployment has nothing to ask for.
        deploy_service(hello(name, gateway=made["name"]), force=True)
        assert peer(made["https_port"], host, server.root()) == shown


@pytest.mark.testbed
def test_so_it_has_behind_a_gateway_on_a_host_and_a_renewal_there_fails_no_request(
    lab: Lab, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_fleet(lab.fleet())
    with acme(tmp_path, monkeypatch, http_port=80) as server:
        server.names.address = edge = lab.edge.address
        certificate = {"type": "acme", "acme_url": server.url}
        create_gateway(lab.gateway(domain="example.org", certificate=certificate))
        host = f"{name}.example.org"

        began = time.monotonic()
        endpoint = deploy_service(lab.service(name, replicas=1))
        before = peer(443, host, server.root(), edge)
        took = time.monotonic() - began

        assert took < 30
        assert endpoint.url == f"https://{host}"
        trusting = ssl.create_default_context(cadata=server.root())
        with Load(443, host=host, tls=trusting, address=edge, paths=("/",)) as load:
            renew_certificates(GATEWAY, force=True)
            done = load.done
            wait_until(lambda: load.done > done + 50)
            after = peer(443, host, server.root(), edge)
        assert after["serialNumber"] != before["serialNumber"]
        assert load.failures == []
        modes = lab.edge.check(["find", "/var/lib/prefect-dstack", "-name", "*.pem", "-printf", "%u %m\\n"])
        assert modes.splitlines() == ["root 600", "root 600"]

    stop_service(name)
    delete_gateway(GATEWAY)
    delete_fleet(FLEET)


def test_a_renewal_fails_no_request_and_a_failed_one_leaves_the_old_certificate(
    gateway: Create, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer
) -> None:
    with acme(tmp_path, monkeypatch) as server:
        made = gateway({"type": "acme", "acme_url": server.url}, port=server.http_port)
        host, port = f"{name}.example.org", made["https_port"]
        deploy_service(hello(name, gateway=made["name"], commands=[f"exec python3 '{ECHO}'"], probes=None))
        trusted = server.root()
        before = peer(port, host, trusted)

        assert renew_certificates(made["name"])[0].hosts == (host,)
        assert peer(port, host, trusted) == before, "nothing is due on the first day"

        with Load(port, host=host, tls=ssl.create_default_context(cadata=trusted), paths=("/",)) as load:
            renew_certificates(made["name"], force=True)
            done = load.done
            wait_until(lambda: load.done > done + 50)
            after = peer(port, host, trusted)
            assert after["serialNumber"] != before["serialNumber"]

            server.stop()
            with pytest.raises(
                CertificateError, match=rf"{host}, the old one is good for 89 days: .* reached"
            ):
                renew_certificates(made["name"], force=True)
            assert peer(port, host, trusted) == after
        assert load.failures == []

    runs = prefect_server.ask("/flow_runs/filter", flows={"name": {"any_": ["renew-certificates"]}})
    states = [run["state"]["type"] for run in runs if run["parameters"].get("gateway") == made["name"]]
    assert sorted(states) == ["COMPLETED", "COMPLETED", "FAILED"]

    def told() -> list[dict[str, Any]]:
        about = {"event": {"name": ["prefect-dstack.certificate.renewal-failed"]}}
        return list(prefect_server.ask("/events/filter", filter=about)["events"])

    (event,) = wait_until(lambda: [it for it in told() if it["payload"]["gateway"] == made["name"]], 30)
    assert event["payload"]["hosts"] == [host]
    assert "cannot be reached: Connection refused" in event["payload"]["reason"]
    assert event["payload"]["expires_at"] is not None


def test_a_service_whose_first_certificate_cannot_be_had_is_not_deployed(
    gateway: Create, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dstack.tasks.certificates.issue_certificate.retries", 0)
    made = gateway({"type": "acme", "acme_url": "https://127.0.0.1:9/dir"})

    with pytest.raises(
        CertificateError, match=rf"{name}@1 failed: the ACME server at .*; nothing of it is left"
    ):
        deploy_service(hello(name, gateway=made["name"]))
    state = resolve_infrastructure().gateway(made["name"]).state()
    assert state is not None
    assert state.routes == {}


def test_our_own_authority_is_trusted_by_whoever_is_given_it(
    gateway: Create, name: str, cli: CommandLine
) -> None:
    made = gateway({"type": "self-signed"})
    deploy_service(hello(name, gateway=made["name"]))

    trusted = cli.ok("gateway", "ca").out
    shown = peer(made["https_port"], f"{name}.example.org", trusted)

    assert "PRIVATE" not in trusted
    assert shown["subjectAltName"] == (("DNS", "*.example.org"), ("DNS", "example.org"))
    listed = cli.ok("gateway", "list").out
    assert "396 days left" in listed
    renew_certificates(made["name"], force=True)
    assert peer(made["https_port"], "example.org", trusted)["serialNumber"] != shown["serialNumber"]


def test_a_gateway_without_a_domain_has_a_certificate_for_its_address(
    gateway: Create, name: str, cli: CommandLine
) -> None:
    made = gateway({"type": "self-signed"}, domain="left out")
    endpoint = deploy_service(hello(name, gateway=made["name"], auth=False))

    assert endpoint.url == f"https://127.0.0.1:{made['https_port']}"
    shown = peer(made["https_port"], "127.0.0.1", cli.ok("gateway", "ca").out)
    assert shown["subjectAltName"] == (("IP Address", "127.0.0.1"),)


def test_a_file_is_used_and_a_newer_one_taken_by_the_next_renewal(
    gateway: Create, name: str, tmp_path: Path
) -> None:
    ours = new_authority(datetime.now(UTC))
    write(ours, tmp_path)
    files = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    made = gateway({"type": "file", **files})
    deploy_service(hello(name, gateway=made["name"]))
    host = f"{name}.example.org"
    first = peer(made["https_port"], host, ours.certificate)["serialNumber"]

    renew_certificates(made["name"])
    assert peer(made["https_port"], host, ours.certificate)["serialNumber"] == first
    write(ours, tmp_path)
    renew_certificates(made["name"])
    second = peer(made["https_port"], host, ours.certificate)["serialNumber"]

    assert second != first
    # The files are needed only where a newer one is installed from.
    (tmp_path / "key.pem").unlink()
    renew_certificates(made["name"])
    assert peer(made["https_port"], host, ours.certificate)["serialNumber"] == second


def test_a_file_that_cannot_be_used_makes_no_gateway(
    gateway: Create, tmp_path: Path, name: str, home: Home
) -> None:
    write(new_authority(datetime.now(UTC)), tmp_path)
    (tmp_path / "key.pem").write_bytes(private_pem(new_key()))
    files = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}

    with pytest.raises(CertificateError, match=r"key\.pem: is not the key of the first certificate"):
        gateway({"type": "file", **files})
    assert f"g{name}" not in resolve_infrastructure().configured_gateways
    assert not (home.state / "gateways" / f"g{name}" / "state.json").exists()


def test_files_that_do_not_fit_are_refused_while_good_ones_serve(
    gateway: Create, name: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    ours = new_authority(now)
    write(ours, tmp_path)
    files = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    made = gateway({"type": "file", **files})
    deploy_service(hello(name, gateway=made["name"]))
    host = f"{name}.example.org"
    serial = peer(made["https_port"], host, ours.certificate)["serialNumber"]

    with pytest.raises(CertificateError, match=r"nope\.pem: cannot be read"):
        gateway({"type": "file", **files, "key_file": str(tmp_path / "nope.pem")})
    with pytest.raises(CertificateError, match=r"clients of '.*' ask for elsewhere\.example\.com: bring one"):
        deploy_service(hello(name, gateway=made["name"], domain="elsewhere.example.com"))
    other = new_key()
    (tmp_path / "other.pem").write_bytes(ours.issue(other, ("other.example",), now))
    (tmp_path / "other.key").write_bytes(private_pem(other))
    others = {"cert_file": str(tmp_path / "other.pem"), "key_file": str(tmp_path / "other.key")}
    with pytest.raises(CertificateError, match=r"is for other\.example, and clients of"):
        gateway({"type": "file", **others})

    assert peer(made["https_port"], host, ours.certificate)["serialNumber"] == serial
    kept = resolve_infrastructure().gateway(made["name"]).configuration.certificate
    assert kept is not None
    assert kept.cert_file == files["cert_file"]


def test_a_service_follows_its_gateway_to_https_and_back(gateway: Create, name: str) -> None:
    made = gateway(None, https_port="left out")
    service = hello(name, gateway=made["name"], auth=False)
    assert deploy_service(service).url == f"http://{name}.example.org:{made['port']}"

    port = gateway({"type": "self-signed"})["https_port"]
    secure = deploy_service(service)
    assert (secure.url, secure.changed) == (f"https://{name}.example.org:{port}", True)
    assert peer(port, f"{name}.example.org", authority().certificate)

    gateway(None, https_port="left out")
    assert request(made["port"], "/", host=f"{name}.example.org").status == 200
    with pytest.raises(UnsupportedKeyError, match="has no HTTPS"):
        deploy_service({**service, "https": True})


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (
            {"type": "acm", "arn": "arn:aws:acm:eu-west-1:123456789012:certificate/a"},
            r"certificate\.type: .*type: acme",
        ),
        ({"type": "acme", "challenge": "dns-01"}, r"certificate\.challenge: dns-01 writes to Route 53"),
    ],
)
def test_what_nothing_acts_on_is_refused(gateway: Create, certificate: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gateway(certificate)


def write(authority: Authority, directory: Path) -> None:
    key = new_key()
    chain = authority.issue(key, ["*.example.org"], datetime.now(UTC))
    (directory / "cert.pem").write_bytes(chain)
    (directory / "key.pem").write_bytes(private_pem(key))


def acme(directory: Path, monkeypatch: pytest.MonkeyPatch, http_port: int | None = None) -> Any:
    """An ACME server that is trusted."""
    if reason := missing():
        pytest.skip(reason)
    server = pebble(directory / "pebble", http_port or free_port())
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(directory / "pebble" / "trusted.pem"))
    return server
