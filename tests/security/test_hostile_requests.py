"""Requests that try to pass the gateway without a token, or to reach another service than their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace, haproxy_binary
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, raw_answers
from tests.gateways.conftest import replica

pytestmark = pytest.mark.integration

SECRET = "the-right-token"
SECURE = b"Host: secure.test\r\n"
OPEN = b"Host: open.test\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# What a smuggled request would look like to the application behind.
INNER = b"GET /smuggled HTTP/1.1\r\nHost: secure.test\r\n\r\n"
LAST = b"0\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PREFLIGHT = b"Access-Control-Request-Method: GET\r\n"


@dataclass(frozen=True)
class Hostile:
    """One row: what is sent, what comes back, and who may see it."""

    name: str
    request: bytes
    status: int | None
    """Of the first answer; None: the connection is closed without one."""
    reaches: str | None = None
    """The service that receives it, always by right; None: nobody does."""


def get(target: str, headers: bytes = SECURE, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return f"{method} {target} {version}\r\n".encode("latin-1") + headers + b"\r\n"


def bearer(value: str) -> bytes:
    return SECURE + b"Authorization: " + value.encode("latin-1") + b"\r\n"


def post(headers: bytes, body: bytes, target: str = "/") -> bytes:
    return f"POST {target} HTTP/1.1\r\n".encode() + headers + b"\r\n" + body


TABLE = [
    # No token, a wrong one, or one in another place.
    Hostile("no token", get("/"), 401),
    Hostile("an empty token", get("/", bearer("Bearer ")), 401),
    Hostile("no scheme", get("/", bearer(SECRET)), 401),
    Hostile("another scheme", get("/", bearer(f"Basic {SECRET}")), 401),
    Hostile("the token twice", get("/", bearer(f"Bearer {SECRET}, Bearer {SECRET}")), 401),
    Hostile(
        "a second Authorization",
        get("/", bearer("Bearer wrong") + bearer(f"Bearer {SECRET}")[19:]), 401,
    ),
    Hostile(
        "a first Authorization",
        get("/", bearer(f"Bearer {SECRET}") + b"Authorization: Bearer x\r\n"), 401,
    ),
    Hostile("a prefix of the token", get("/", bearer(f"Bearer {SECRET[:-1]}")), 401),
    Hostile("the token and more", get("/", bearer(f"Bearer {SECRET}x")), 401),
    Hostile("the token in capitals", get("/", bearer(f"Bearer {SECRET.upper()}")), 401),
    Hostile("the digest", get("/", bearer(f"Bearer {hashlib.sha256(SECRET.encode()).hexdigest()}")), 401),
    Hostile("a token of another service", get("/", bearer("Bearer token-of-admin")), 401),
    Hostile("an expired token", get("/", bearer("Bearer expired")), 401),
    Hostile("the token in the query", get(f"/?token={SECRET}&access_token={SECRET}"), 401),
    Hostile("the token in a cookie", get("/", SECURE + f"Cookie: token={SECRET}\r\n".encode()), 401),
    Hostile(
        "Proxy-Authorization",
        get("/", SECURE + f"Proxy-Authorization: Bearer {SECRET}\r\n".encode()), 401,
    ),
    Hostile("Authorization with an underscore", get("/", SECURE + b"Authorization_: Bearer x\r\n"), 401),
    Hostile("a wildcard of the token map", get("/", bearer("Bearer *")), 401),
    Hostile("a slash into another service's tokens", get("/", bearer("Bearer ../admin/x")), 401),
    Hostile(
        "a folded Authorization",
        get("/", SECURE + b"Authorization: Bearer\r\n " + SECRET.encode() + b"x\r\n"), 401,
    ),
    Hostile("a header that hides in another", get("/", SECURE + b"X: y\nAuthorization: Bearer z\r\n"), 401),
    Hostile("a preflight where there is no CORS", get("/", SECURE + PREFLIGHT, "OPTIONS"), 401),
    Hostile("HEAD", get("/", SECURE + b"Connection: close\r\n", "HEAD"), 401),
    Hostile("an unknown method", get("/", method="FROBNICATE"), 401),
    Hostile("a method in lower case", get("/", method="get"), 401),
    # Methods that are not for applications.
    Hostile("CONNECT", get("secure.test:80", method="CONNECT"), 405),
    Hostile("CONNECT elsewhere", get("169.254.169.254:80", b"Host: 169.254.169.254:80\r\n", "CONNECT"), 405),
    Hostile("TRACE", get("/", method="TRACE"), 405),
    # Host.
    Hostile("no Host", get("/", b""), 400),
    Hostile("two Hosts", get("/", OPEN + SECURE), 400),
    Hostile("an empty Host", get("/", b"Host:\r\n"), 400),
    Hostile("two Hosts in one", get("/", b"Host: open.test, secure.test\r\n"), 400),
    Hostile("a Host with a path", get("/", b"Host: open.test/admin\r\n"), 400),
    Hostile("a Host with credentials", get("/", b"Host: secure.test@open.test\r\n"), 400),
    Hostile("a Host with a space", get("/", b"Host: open.test secure.test\r\n"), 400),
    Hostile("a Host with a quote", get("/", b'Host: open.test"\r\n'), 400),
    Hostile("a Host with a format", get("/", b"Host: %[src]\r\n"), 400),
    Hostile("a Host with a NUL", get("/", b"Host: open.test\x00\r\n"), 400),
    Hostile("a Host in UTF-8", get("/", "Host: öpen.test\r\n".encode()), 400),
    Hostile("a Host with an absurd port", get("/", b"Host: open.test:999999\r\n"), 400),
    Hostile("a wildcard Host", get("/", b"Host: *\r\n"), 400),
    Hostile("an unknown Host", get("/", b"Host: nobody.test\r\n"), 404),
    Hostile("a Host that contains a known one", get("/", b"Host: open.test.evil.test\r\n"), 404),
    Hostile("a Host that ends like a known one", get("/", b"Host: notopen.test\r\n"), 404),
    Hostile("the address as Host", get("/", b"Host: 127.0.0.1\r\n"), 404),
    Hostile("a backend's name as Host", get("/", b"Host: service:secure\r\n"), 400),
    Hostile("another Host in the target", get("http://secure.test/", OPEN), 400),
    Hostile("the target's Host alone", get("http://secure.test/", b""), 400),
    Hostile("X-Forwarded-Host", get("/", SECURE + b"X-Forwarded-Host: open.test\r\n"), 401),
    Hostile("X-Gateway-Listener", get("/", SECURE + b"X-Gateway-Listener: 1\r\n"), 401),
    Hostile("HTTP/1.0 without Host", get("/", b"", version="HTTP/1.0"), 400),
    # Paths that lead to a service with a token, on a host whose other paths need none.
    Hostile("admin", get("/admin", OPEN), 401),
    Hostile("admin with slashes", get("//admin//x", OPEN), 401),
    Hostile("admin after dots", get("/x/../admin/x", OPEN), 401),
    Hostile("admin after encoded dots", get("/x/%2e%2e/admin/x", OPEN), 401),
    Hostile("admin after half-encoded dots", get("/x/.%2E/admin/x", OPEN), 401),
    Hostile("admin after a dot", get("/./admin/x", OPEN), 401),
    Hostile("admin with encoded letters", get("/%61dmin/x", OPEN), 401),
    Hostile("admin with parameters", get("/admin;x=y/z", OPEN), 401),
    Hostile("admin above the root", get("/../../admin", OPEN), 401),
    Hostile(
        "another host's name before the @ of an absolute target",
        get("http://secure.test@open.test/", OPEN),
        400,
    ),
    Hostile("a password in an absolute target", get("http://a:b@secure.test/"), 400),
    Hostile("admin as an absolute target", get("http://open.test/admin", OPEN), 401),
    Hostile("admin with a query", get("/admin?/../open", OPEN), 401),
    Hostile("admin with slashes and parameters", get("//;a=b/admin;c/x", OPEN), 401),
    Hostile("a doubly encoded dot is a name", get("/x/%252e%252e/admin", OPEN), 200, "open"),
    Hostile("an encoded slash is a name", get("/x%2f..%2fadmin", OPEN), 200, "open"),
    Hostile("admin in capitals is a name", get("/ADMIN", OPEN), 200, "open"),
    Hostile("a word that begins with admin", get("/administration", OPEN), 200, "open"),
    Hostile("a bad encoding", get("/%zz", OPEN), 400),
    Hostile("half an encoding", get("/%2", OPEN), 400),
    Hostile("a control character in the target", get("/\x01", OPEN), 400),
    Hostile("a byte beyond ASCII in the target", get("/\xff", OPEN), 400),
    Hostile("a space in the target", get("/a b", OPEN), 400),
    Hostile("a fragment in the target", get("/#/../admin", OPEN), 400),
    Hostile("a target without a slash", get("admin", OPEN), 400),
    Hostile("the path of the proxy's statistics", get("/haproxy?stats", b"Host: nobody.test\r\n"), 404),
    # Smuggling: a second request inside the first, or lengths that two readers read in two ways.
    Hostile("CL and TE", post(OPEN + b"Content-Length: 4\r\n" + CHUNKED, LAST + INNER), 200, "open"),
    Hostile("TE and CL", post(OPEN + CHUNKED + b"Content-Length: 4\r\n", LAST + INNER), 200, "open"),
    Hostile("two Content-Lengths", post(OPEN + b"Content-Length: 0\r\nContent-Length: 46\r\n", INNER), 400),
    Hostile("a list of Content-Lengths", post(OPEN + b"Content-Length: 0, 46\r\n", INNER), 400),
    Hostile("a signed Content-Length", post(OPEN + b"Content-Length: +5\r\n", b"hello"), 400),
    Hostile("a negative Content-Length", post(OPEN + b"Content-Length: -1\r\n", b""), 400),
    Hostile("a hexadecimal Content-Length", post(OPEN + b"Content-Length: 0x5\r\n", b"hello"), 400),
    Hostile(
        "an endless Content-Length",
        post(OPEN + b"Content-Length: 99999999999999999999999\r\n", b""), 400,
    ),
    Hostile(
        "TE with a tab",
        post(OPEN + b"Transfer-Encoding:\tchunked\r\nContent-Length: 46\r\n", LAST + INNER), 200, "open",
    ),
    Hostile(
        "TE that is not chunked",
        post(OPEN + b"Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n", b"x" * 4 + INNER), 400,
    ),
    Hostile(
        "TE with chunked in the middle",
        post(OPEN + b"Transfer-Encoding: chunked, identity\r\n", LAST + INNER), 400,
    ),
    Hostile("chunked twice", post(OPEN + CHUNKED + CHUNKED, LAST + INNER), 400),
    Hostile(
        "TE with a space before the colon",
        post(OPEN + b"Transfer-Encoding : chunked\r\n", LAST + INNER), 400,
    ),
    Hostile(
        "TE with an underscore",
        post(OPEN + b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), 200, "open",
    ),
    Hostile("TE of HTTP/1.0", b"POST / HTTP/1.0\r\n" + OPEN + CHUNKED + b"\r\n0\r\n\r\n" + INNER, 400),
    Hostile("a bad chunk size", post(OPEN + CHUNKED, b"zz\r\nhello\r\n0\r\n\r\n"), 400),
    Hostile("a negative chunk size", post(OPEN + CHUNKED, b"-1\r\n\r\n0\r\n\r\n"), 400),
    Hostile("an endless chunk size", post(OPEN + CHUNKED, b"fffffffffffffffff\r\nx\r\n0\r\n\r\n"), 400),
    Hostile("a chunk that is longer than it says", post(OPEN + CHUNKED, b"1\r\nhello\r\n0\r\n\r\n"), 400),
    Hostile("a second request", get("/", OPEN) + INNER, 200, "open"),
    Hostile("a bare line feed as line end", b"GET / HTTP/1.1\nHost: secure.test\n\n", 401),
    Hostile("a carriage return in a header", get("/", OPEN + b"X: a\rHost: secure.test\r\n"), 400),
    Hostile("a NUL in a header", get("/", OPEN + b"X: a\x00b\r\n"), 400),
    Hostile("a header without a colon", get("/", OPEN + b"nonsense\r\n"), 400),
    Hostile("a header without a name", get("/", OPEN + b": x\r\n"), 400),
    Hostile("a header that begins with a space", b"GET / HTTP/1.1\r\n X: y\r\n" + OPEN + b"\r\n", 400),
    Hostile("a header name with a space", get("/", OPEN + b"X Y: z\r\n"), 400),
    Hostile("headers beyond measure", get("/", OPEN + b"X: " + b"a" * 20_000 + b"\r\n"), 400),
    Hostile("headers beyond number", get("/", OPEN + b"X: a\r\n" * 200), 400),
    Hostile("HTTP/0.9", b"GET /\r\n\r\n", 400),
    Hostile("HTTP/1.2 is 1.1", get("/", version="HTTP/1.2"), 401),
    Hostile("HTTP/3.0 is 1.1 too", get("/", version="HTTP/3.0"), 401),
    Hostile("no protocol", b"GET / NONSENSE\r\n\r\n", 400),
    Hostile("TLS on the plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, 400),
    # Other protocols through this one.
    Hostile("an upgrade to h2c", get("/", SECURE + H2C), 401),
    Hostile(
        "h2c on an open service stays HTTP/1.1",
        get("/", OPEN + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), 200, "open",
    ),
    Hostile("a websocket without a token", get("/websocket", SECURE + WEBSOCKET), 401),
    Hostile(
        "Connection that names Authorization",
        get("/", bearer("Bearer wrong") + b"Connection: Authorization\r\n"), 401,
    ),
    Hostile(
        "Connection that names Host",
        get("/", OPEN + b"Connection: close, Host, X-Forwarded-For\r\n"), 200, "open",
    ),
    Hostile("the PROXY protocol", b"PROXY TCP4 6.6.6.6 127.0.0.1 1 80\r\n" + get("/", SECURE), 400),
]  # fmt: skip


class Gated:
    """A gateway with a secure service, and a host that is open but for one path."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.port = port
        self.applications = {name: Application(name) for name in ("secure", "open", "admin")}
        expired = {"sha256": hashlib.sha256(b"expired").hexdigest(), "expires_at": "2020-01-01T00:00:00Z"}
        tokens = {"t": AcceptedToken(sha256=hashlib.sha256(SECRET.encode()).hexdigest()), "old": expired}
        self._publish(gateway, "secure", auth=True, hosts=["secure.test"], tokens=tokens)
        self._publish(gateway, "open", hosts=["open.test"])
        other = {"t": AcceptedToken(sha256=hashlib.sha256(b"token-of-admin").hexdigest())}
        self._publish(gateway, "admin", auth=True, hosts=["open.test"], path_prefix="/admin", tokens=other)

    def _publish(self, gateway: Gateway, name: str, **fields: object) -> None:
        replicas = {name: replica(self.applications[name])}
        route = Route.model_validate({"service": name, "port": self.port, "replicas": replicas, **fields})
        gateway.change(lambda state: state.with_route(route))

    def forget(self) -> None:
        for application in self.applications.values():
            application.seen.clear()

    def seen(self) -> dict[str, list[str]]:
        """The requests that reached each application."""
        found = {name: [it.target for it in app.seen] for name, app in self.applications.items()}
        return {name: targets for name, targets in found.items() if targets}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    try:
        haproxy_binary()
    except GatewayError as error:
        pytest.skip(str(error))
    gateway = Gateway(LocalPlace("gated", tmp_path_factory.mktemp("gateway") / "gateway"))
    gateway.ensure_running(GatewayState(name="gated", base_port=free_port()))
    world = Gated(gateway, gateway.state().base_port)
    yield world
    gateway.destroy()
    for application in world.applications.values():
        application.stop()


@pytest.fixture(autouse=True)
def _clean(gated: Gated) -> None:
    gated.forget()


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_a_hostile_request_gets_its_status_and_nothing_else(gated: Gated, row: Hostile) -> None:
    answers = raw_answers(gated.port, row.request)
    assert (answers[0].status if answers else None) == row.status
    seen = gated.seen()
    assert set(seen) <= ({row.reaches} if row.reaches else set())
    assert "/smuggled" not in str(seen)
    if row.reaches:
        assert len(seen[row.reaches]) == 1
    if row.status == 401:
        assert all(answer.status in (400, 401) for answer in answers)


def test_the_right_token_opens_the_door(gated: Gated) -> None:
    """The table would be worth nothing if nobody could get in."""
    assert raw_answers(gated.port, get("/", bearer(f"Bearer {SECRET}")))[0].status == 200
    assert gated.seen() == {"secure": ["/"]}


def test_the_table_is_long_enough_and_has_no_row_twice() -> None:
    assert len(TABLE) >= 60
    assert len({row.request for row in TABLE}) == len(TABLE)
