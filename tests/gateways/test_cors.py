"""Pages of other origins, as browsers ask for them."""

from __future__ import annotations

import pytest

from tests.gateways.world import World

pytestmark = pytest.mark.integration

STAINLESS = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)


def preflight(origin: str, headers: str | None = None, method: str = "POST") -> dict[str, str]:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return asked if headers is None else {**asked, "Access-Control-Request-Headers": headers}


def test_a_page_of_an_allowed_origin_may_call(world: World) -> None:
    name, application = world.service(
        auth=True, cors={"allow_origins": ["https://*.example.com"], "allow_credentials": True}
    )
    asked = preflight("https://app.example.com", "authorization")
    answer = world.get(name, method="OPTIONS", headers=asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert application.seen == []
    refused = world.get(name, headers={"Origin": "https://app.example.com"})
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    for origin in ("https://evil.com", "https://example.com.evil.com", "http://app.example.com", "null"):
        answer = world.get(name, method="OPTIONS", headers={**asked, "Origin": origin})
        assert not any(header.startswith("access-control-allow") for header in answer.headers), origin


@pytest.mark.parametrize("fields", [{}, {"allow_headers": ["*"]}])
def test_every_header_that_a_page_asks_for_may_be_sent(world: World, fields: dict[str, object]) -> None:
    """The OpenAI client sends a dozen of its own, and to a browser `*` does not mean `Authorization`."""
    name, _ = world.service(cors={"allow_origins": "*", **fields})
    answer = world.get(name, method="OPTIONS", headers=preflight("https://a.test", STAINLESS))
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == STAINLESS
    answer = world.get(name, method="OPTIONS", headers=preflight("https://a.test"))
    assert answer.status == 204
    assert "access-control-allow-headers" not in answer.headers


def test_only_the_headers_that_are_listed_may_be_sent(world: World) -> None:
    name, _ = world.service(cors={"allow_origins": "*", "allow_headers": ["X-A", "X-B"]})
    answer = world.get(name, method="OPTIONS", headers=preflight("https://a.test", STAINLESS))
    assert answer.headers["access-control-allow-headers"] == "X-A, X-B"


ORIGINS = {
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop": {
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop": True,
        "chrome-extension://bbcdefghijklmnopabcdefghijklmnop": False,
        "https://abcdefghijklmnopabcdefghijklmnop": False,
    },
    "moz-extension://*": {
        "moz-extension://0b1f7c3e-9a1d-4b9e-8f6a-1c2d3e4f5a6b": True,
        "moz-extension://a/b": False,
        "https://a": False,
    },
    "app://obsidian.md": {"app://obsidian.md": True, "app://obsidian_md": False},
    "http://localhost:*": {
        "http://localhost": True,
        "http://localhost:3000": True,
        "https://localhost:3000": False,
        "http://localhost.evil.com:3000": False,
        "http://evil.com:3000": False,
        "http://localhost:3000.evil.com": False,
    },
    "http://[::1]:8080": {"http://[::1]:8080": True, "http://[::1]": False},
    "https://app.example.com:443": {"https://app.example.com": True, "https://app.example.com:444": False},
    "https://*.example.com:*": {"https://a.b.example.com:1": True, "https://example.com": False},
}


@pytest.mark.parametrize("allowed", ORIGINS)
def test_origins_are_pages_extensions_and_apps(world: World, allowed: str) -> None:
    name, _ = world.service(cors={"allow_origins": [allowed]})
    for origin, fits in ORIGINS[allowed].items():
        answer = world.get(name, headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == (origin if fits else None), origin
