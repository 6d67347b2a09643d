"""HTTPS: certificates come and are renewed while requests are answered."""

from __future__ import annotations

import datetime as dt
import http.client
import socket
import ssl
import warnings
from collections.abc import Callable

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from prefect_dstack.errors import CertificateError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, request
from tests.gateways.conftest import serve

Start = Callable[[str], Application]


def certificate(*names: str) -> bytes:
    """A key and a self-signed certificate for host names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + signed.public_bytes(serialization.Encoding.PEM)


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]).serial_number


def handshake(port: int, name: str | None, **options: object) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    for option, value in options.items():
        setattr(context, option, value)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname=name)


def served_serial(port: int, name: str | None) -> int:
    with handshake(port, name) as connection:
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def get(
    port: int, name: str, target: str = "/", headers: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
    connection.request("GET", target, headers={"Host": f"{name}:{port}", **(headers or {})})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.fixture
def https_port(gateway: Gateway) -> int:
    port = free_port()
    gateway.change(
        lambda state: state.model_copy(
            update={"https_port": port, "bind_address": "127.0.0.1", "domain": "test"}
        )
    )
    return port


def test_a_certificate_is_installed_and_renewed_hot(
    gateway: Gateway, port: int, https_port: int, application: Start
) -> None:
    serve(gateway, application("r0"), hosts=["a.test"])
    with pytest.raises(ssl.SSLError):
        handshake(https_port, "a.test")
    first, second = certificate("a.test"), certificate("a.test")
    gateway.install_certificate("a.test", first)
    assert served_serial(https_port, "a.test") == serial(first)
    workers = gateway._workers().current
    gateway.install_certificate("a.test", second)
    assert served_serial(https_port, "a.test") == serial(second)
    assert gateway._workers().current == workers, "a renewal must not reload"
    gateway.change(
        lambda state: state.with_route(state.routes["hello"].model_copy(update={"queue_timeout": 9}))
    )
    assert served_serial(https_port, "a.test") == serial(second), "the disk has the new one too"
    with pytest.raises(CertificateError, match="cannot be used"):
        gateway.install_certificate("a.test", b"rubbish")
    assert served_serial(https_port, "a.test") == serial(second)
    kept = gateway.certificate("a.test")
    assert kept is not None
    assert serial(kept) == serial(second)
    assert b"PRIVATE" not in kept


def test_the_name_chooses_the_certificate_and_the_first_is_for_the_nameless(
    gateway: Gateway, https_port: int
) -> None:
    a, b = certificate("a.test"), certificate("*.b.test")
    gateway.install_certificate("a.test", a)
    gateway.install_certificate("b.test", b)
    assert served_serial(https_port, "a.test") == serial(a)
    assert served_serial(https_port, "x.b.test") == serial(b)
    assert served_serial(https_port, None) == serial(a)
    assert gateway.certificate("c.test") is None


def test_what_an_application_and_a_client_learn_over_https(
    gateway: Gateway, port: int, https_port: int, application: Start
) -> None:
    app = application("r0")
    serve(gateway, app, hosts=["a.test"], https_redirect=True)
    gateway.install_certificate("a.test", certificate("a.test"))
    response = get(https_port, "a.test", "/echo")
    assert response.status == 200
    assert response.getheader("strict-transport-security") == "max-age=31536000"
    assert app.seen[-1].header("x-forwarded-proto") == "https"
    assert app.seen[-1].header("x-forwarded-host") == f"a.test:{https_port}"
    redirect = request(port, "/echo?x=1", host=f"a.test:{port}", headers={"Authorization": "Bearer secret"})
    assert redirect.status == 308
    assert redirect.headers["location"] == f"https://a.test:{https_port}/echo?x=1"
    assert "strict-transport-security" not in redirect.headers
    assert len(app.seen) == 1
    unknown = get(https_port, "nobody.test")
    assert unknown.status == 404


def test_a_body_of_unknown_size_is_said_to_have_come_by_the_protocol_that_it_came_by(
    gateway: Gateway, port: int, https_port: int, application: Start
) -> None:
    app = application("r0")
    serve(gateway, app, hosts=["a.test"])
    gateway.install_certificate("a.test", certificate("a.test"))
    request(
        port, "/", host="a.test", method="POST", headers={"Transfer-Encoding": "chunked"}, body=b"0\r\n\r\n"
    )
    assert app.seen[-1].header("x-forwarded-proto") == "http"


def test_only_modern_tls_is_spoken(gateway: Gateway, https_port: int) -> None:
    gateway.install_certificate("a.test", certificate("a.test"))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with handshake(https_port, "a.test", minimum_version=version, maximum_version=version) as connection:
            assert connection.version() == version.name.replace("_", ".")
            assert connection.selected_alpn_protocol() == "h2"
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", https_port), 5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="a.test")


def test_http_2_reaches_the_same_rules(gateway: Gateway, https_port: int, application: Start) -> None:
    app = application("r0")
    serve(gateway, app, hosts=["a.test"], client_max_body_size=50_000, auth=False)
    gateway.install_certificate("a.test", certificate("a.test"))
    with httpx.Client(http2=True, verify=False, base_url=f"https://127.0.0.1:{https_port}") as client:
        host = {"Host": "a.test"}
        answer = client.get("/echo", headers={**host, "X-Forwarded-For": "6.6.6.6"})
        assert answer.http_version == "HTTP/2"
        assert dict(answer.json()["headers"])["x-forwarded-for"] == "127.0.0.1"
        assert client.get("/", headers={"Host": "nobody.test"}).status_code == 404

        def body(size: int) -> object:
            yield from (b"x" * 1000 for _ in range(size // 1000))

        assert client.post("/echo", headers=host, content=body(50_000)).json()["size"] == 50_000  # type: ignore[arg-type]
        headers = dict(client.post("/echo", headers=host, content=body(1000)).json()["headers"])  # type: ignore[arg-type]
        assert headers["x-forwarded-proto"] == "https"
        before = len(app.seen)
        for method, size in (("POST", 60_000), ("GET", 60_000), ("POST", 50_001), ("GET", 50_001)):
            pieces = (b"x" * min(1000, size - start) for start in range(0, size, 1000))
            answer = client.request(method, "/echo", headers=host, content=pieces)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, 413), (method, size)
        assert client.post("/echo", headers=host, content=b"x" * 50_001).status_code == 413
        assert len(app.seen) == before
        assert client.request("GET", "/echo", headers=host, content=body(2000)).json()["size"] == 2000  # type: ignore[arg-type]


def test_a_challenge_is_answered_over_http_and_its_path_is_reserved(
    gateway: Gateway, port: int, https_port: int, application: Start
) -> None:
    app = application("r0")
    serve(gateway, app, hosts=["a.test"], auth=True)
    workers = gateway._workers().current
    path = "/.well-known/acme-challenge/"
    gateway.change(lambda state: state.with_challenge("abc_DEF-1", "abc_DEF-1.thumb_print"))
    for host in ("a.test", "not-yet-known.test"):
        answer = request(port, f"{path}abc_DEF-1", host=host)
        assert (answer.status, answer.body) == (200, b"abc_DEF-1.thumb_print")
    for other in ("", "other", "abc_DEF-1/x"):
        assert request(port, f"{path}{other}", host="a.test").status == 404, other
    gateway.change(lambda state: state.without_challenge("abc_DEF-1"))
    assert request(port, f"{path}abc_DEF-1", host="a.test").status == 404
    assert app.seen == []
    assert gateway._workers().current == workers


def test_the_path_of_challenges_is_the_applications_where_there_is_no_https(
    gateway: Gateway, port: int, application: Start
) -> None:
    app = application("r0")
    serve(gateway, app)
    assert request(port, "/.well-known/acme-challenge/x").status == 200
