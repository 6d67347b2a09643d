"""What the application sees is what was sent."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck as Slow
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateways.application import Application, raw
from tests.gateways.world import World, token

pytestmark = pytest.mark.integration

# What the gateway says to the application, and the client cannot.
SPOKEN_FOR = [
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix",
    "X-Forwarded-Proto", "X-Forwarded-Protocol", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Real-IP",
    "X-Gateway-Listener", "Proxy", "X_Forwarded_For", "X-Forwarded_For", "x_forwarded-for", "X_Real_IP",
    "x.forwarded.for", "X_Gateway_Listener",
]  # fmt: skip
ORDINARY = [
    "Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control",
    "Cookie", "DNT", "Date", "From", "If-Match", "If-Modified-Since", "If-None-Match", "Origin", "Pragma",
    "Prefer", "Range", "Referer", "User-Agent", "Via", "X-Requested-With", "X-Request-ID",
    "X-Correlation-ID", "X-Client-Id", "X-Client-Version", "X-Client-IP", "X-HTTP-Method-Override",
    "X-Http-Method", "X-Method-Override", "X-Host-Id", "X-Host", "X-Original-URL", "X-Original-Path",
    "X-Rewrite-URL", "X-Realm", "X-Real-Name", "X-Gateway-Id", "X-Cluster-Name", "X-Cluster-Client-IP",
    "X-Forwarded-Access-Token", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Client-Cert",
    "X-Forwarded-Groups", "True-Client-IP", "CF-Connecting-IP", "CF-Ray", "Proxy-Authorization", "X-API-Key",
    "OpenAI-Organization", "X-Stainless-Lang", "traceparent", "tracestate", "baggage", "X-B3-TraceId",
    "X-Amz-Date", "X-Hub-Signature-256", "Stripe-Signature", "X_Custom_Name", "Keep-Alive",
]  # fmt: skip


MANY = settings(
    suppress_health_check=[Slow.function_scoped_fixture, Slow.too_slow], max_examples=200, deadline=None
)


@pytest.fixture(scope="module")
def echo(world: World) -> tuple[str, Application]:
    """One service for all that only look at what reaches it."""
    return world.service()


@pytest.mark.parametrize("header", SPOKEN_FOR)
def test_a_header_of_the_gateway_is_not_the_clients_to_send(
    world: World, echo: tuple[str, Application], header: str
) -> None:
    name, application = echo
    assert world.get(name, headers={header: "6.6.6.6"}).status == 200
    assert "6.6.6.6" not in str(application.seen[-1].headers)


@pytest.mark.parametrize("header", ORDINARY)
def test_every_other_header_passes(world: World, echo: tuple[str, Application], header: str) -> None:
    name, application = echo
    value = 'rojo=00f067aa0ba902b7, congo=t61rcWkgMzE;  q=0.1 \t"x\\y"'
    assert world.get(name, headers={header: value}).status == 200
    assert [it for key, it in application.seen[-1].headers if key == header.lower()] == [value]


def test_headers_that_come_twice_or_empty_pass_in_their_order(
    world: World, echo: tuple[str, Application]
) -> None:
    name, application = echo
    raw(
        world.port,
        f"GET /%20 HTTP/1.1\r\nHost: {name.upper()}.Test\r\nX-A: 1\r\nX-B:\r\nX-A: 2\r\nCookie: a=1; b=2\r\n"
        "Connection: close\r\n\r\n".encode(),
    )
    sent = [it for it in application.seen[-1].headers if not it[0].startswith("x-forwarded")]
    assert [it for it in sent if it[0] != "connection"] == [
        ("host", f"{name.upper()}.Test"),
        ("x-a", "1"),
        ("x-b", ""),
        ("x-a", "2"),
        ("cookie", "a=1; b=2"),
    ]


def test_the_gateway_adds_what_it_says_of_the_request_and_nothing_else(
    world: World, echo: tuple[str, Application]
) -> None:
    name, application = echo
    raw(world.port, f"GET / HTTP/1.1\r\nHost: {name}.test\r\n\r\n".encode())
    assert dict(application.seen[-1].headers) == {
        "host": f"{name}.test",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": f"{name}.test",
        "x-forwarded-proto": "http",
    }


def test_connection_headers_and_other_protocols_stay_outside(
    world: World, echo: tuple[str, Application]
) -> None:
    name, application = echo
    raw(
        world.port,
        f"GET /echo HTTP/1.1\r\nHost: {name}.test\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        "Connection: Upgrade, HTTP2-Settings, X-Forwarded-For, Host, close\r\n\r\n".encode(),
    )
    seen = application.seen[-1]
    assert seen.header("upgrade") is None
    assert seen.header("http2-settings") is None
    assert "x-forwarded-for" not in (seen.header("connection") or "").lower()
    assert seen.header("x-forwarded-for") == "127.0.0.1"


@pytest.mark.parametrize(
    "headers", ["Upgrade: websocket, h2c", "Upgrade: h2c, websocket", "Upgrade: websocket\r\nUpgrade: h2c"]
)
def test_no_other_protocol_rides_along_with_a_websocket(
    world: World, echo: tuple[str, Application], headers: str
) -> None:
    name, application = echo
    raw(
        world.port,
        f"GET /echo HTTP/1.1\r\nHost: {name}.test\r\nConnection: Upgrade\r\n{headers}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
    )
    assert [value for key, value in application.seen[-1].headers if key.lower() == "upgrade"] == ["websocket"]


PATHS = [
    "/", "/a%20b", "/a%2fb/", "/%7euser", "/a//b//", "//a", "/a;x=1/b", "/.well-known/x", "/a/./b", "/a/../b",
    "/..", "/x/%2e%2E/y", "/%E2%82%AC", "/a,b:c@d!$&'()*+=~", "/a|b", "/%25zz",
]  # fmt: skip
QUERIES = [
    "",
    "?",
    "?sig=%7e%2f",
    "?a=%2e%2e/../x//y;z",
    "?a=%zz%",
    "?a?b=/./c",
    "?q=a+b%20c&q=%C3%a9&&",
    "?[]|{}",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_target_passes_byte_for_byte(world: World, echo: tuple[str, Application], path: str) -> None:
    name, application = echo
    for query in QUERIES:
        assert world.get(name, path + query).status == 200
        assert application.seen[-1].target == path + query


targets = st.from_regex(r"/(%[0-9a-fA-F]{2}|%2[eEfF]|[a-z./;~!+]){0,12}(\?[!-\"$-~]{0,12})?", fullmatch=True)


@settings(
    suppress_health_check=[Slow.function_scoped_fixture, Slow.too_slow], max_examples=200, deadline=None
)
@given(target=targets)
def test_every_target_passes_byte_for_byte(world: World, echo: tuple[str, Application], target: str) -> None:
    name, application = echo
    assert world.get(name, target).status == 200
    assert application.seen[-1].target == target


def test_a_target_in_absolute_form_keeps_its_path_and_query(
    world: World, echo: tuple[str, Application]
) -> None:
    name, application = echo
    head = f"GET http://{name}.test/a%20b/../c?sig=%7e%2f HTTP/1.1\r\nHost: {name}.test\r\n\r\n"
    assert raw(world.port, head.encode()).status == 200
    assert application.seen[-1].target == "/a%20b/../c?sig=%7e%2f"


def test_a_prefix_is_cut_off_and_the_rest_stays_as_it_was(world: World) -> None:
    name, application = world.service(path_prefix="/api/v1", strip_prefix=True)
    for asked, seen in {
        "/api/v1": "/",
        "/api/v1/": "/",
        "/api/v1?x=%7e": "/?x=%7e",
        "/api/v1/deep/": "/deep/",
        "/api/v1/%7edeep%2f/x;y//z?q=%2f": "/%7edeep%2f/x;y//z?q=%2f",
        "/api/%76%31/deep": "/deep",
        "//api//v1//deep": "/deep",
        "/api;a=b/v1;c/deep;d": "/deep;d",
        "/x/../api/v1/./a/../deep?../x": "/deep?../x",
        "/api/v1/x/..": "/",
        "/api/v1/x/%2e": "/x/",
        "/api/v1/../v1/%20": "/%20",
        "/;x/api/v1/y": "/y",
    }.items():
        assert world.get(name, asked).status == 200, asked
        assert application.seen[-1].target == seen, asked
    assert application.seen[-1].header("x-forwarded-prefix") == "/api/v1"


def test_dots_are_resolved_where_a_limit_would_not_know_what_they_lead_to(world: World) -> None:
    name, application = world.service(rate_limits=[{"prefix": "/api", "rps": 1 / 60, "burst": 1}])
    assert world.get(name, "/api/x/../../free%20/?a=%7e").status == 200
    assert application.seen[-1].target == "/free%20/?a=%7e"
    assert world.get(name, "/api/..;x/free//y").status == 200
    assert application.seen[-1].target == "/free//y"
    assert world.get(name, "/free/..%2fapi").status == 400
    assert world.get(name, "/%2e%2e%2fapi/x").status == 400
    assert [world.get(name, "/x/..;/api").status for _ in range(3)] == [200, 200, 429]


def resolved(path: str) -> str:
    """The path that an application may see, by another way than the gateway's."""
    kept: list[str] = []
    for segment in re.sub(r";[^/]*", "", unquote(path, "latin-1")).split("/"):
        if segment == "..":
            kept = kept[:-1]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept)


spellings = st.lists(
    st.sampled_from(
        ["/", "//", "/./", "/%2e/", "/x/../", "/x/%2E%2e/", "/;p/", "/x/..;q/", "/..%2f", "/%2f"]
    ),
    max_size=3,
)
limited_names = st.sampled_from(
    ["/limited", "/%6cimited", "/limite%64", "/limited;p", "/limited/", "/./limited"]
)


@settings(
    suppress_health_check=[Slow.function_scoped_fixture, Slow.too_slow], max_examples=200, deadline=None
)
@given(
    before=spellings, name=limited_names, after=st.sampled_from(["", "/x", "//", "/../limited", "?/../free"])
)
def test_no_spelling_of_a_limited_path_evades_its_limit(
    before: list[str], name: str, after: str, evader: tuple[World, str, Application]
) -> None:
    world, service, application = evader
    target = "".join(before) + name + after
    count = len(application.seen)
    status = world.get(service, target).status
    leads_to = resolved(target.partition("?")[0])
    assert status in (429, 400) if leads_to.startswith("/limited") else status in (200, 400, 429)
    assert not any(
        resolved(it.target.partition("?")[0]).startswith("/limited") for it in application.seen[count:]
    )


@pytest.fixture(scope="module")
def evader(world: World) -> tuple[World, str, Application]:
    """A service whose limited path has had all its requests for this hour."""
    name, application = world.service(rate_limits=[{"prefix": "/limited", "rps": 1 / 60, "burst": 59}])
    while world.get(name, "/limited").status == 200:
        pass
    return world, name, application


@pytest.mark.parametrize(
    "header", ["X-Client-Id", "X-Api-Key", "X-Forwarded-For", "Forwarded", "Authorization"]
)
@pytest.mark.parametrize("auth", [True, False])
def test_a_limit_by_header_sees_the_header_as_it_came(world: World, header: str, auth: bool) -> None:
    separator = "-" if header == "Authorization" else ", "
    clients = [f"Bearer client{separator}{number}" for number in range(4)]
    tokens = {f"t{number}": token(f"client-{number}") for number in range(4)}
    name, _ = world.service(
        auth=auth and header == "Authorization",
        tokens=tokens,
        rate_limits=[{"rps": 1 / 60, "burst": 1, "key": {"type": "header", "header": header}}],
    )
    statuses = [world.get(name, headers={header: client}).status for client in clients for _ in range(3)]
    assert statuses == [200, 200, 429] * 4


def test_a_limit_by_header_is_not_evaded_by_sending_it_twice(world: World) -> None:
    name, _ = world.service(
        rate_limits=[{"rps": 1 / 60, "burst": 1, "key": {"type": "header", "header": "X-Api-Key"}}]
    )
    statuses = [
        world.get(name, headers={"X-Api-Key": "mine", "x-api-key": f"junk-{number}"}).status
        for number in range(4)
    ]
    assert statuses == [200, 200, 429, 429]
