"""No control character, quote or newline passes a pattern that guards a configuration or a command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.configurations import names
from prefect_dstack.configurations.ports import parse_port

# What could leave its place in a proxy's configuration, a shell, a URL, a label or a log line.
HOSTILE = [
    "\n",
    "\r",
    "\0",
    "\t",
    "\x0b",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "é",
    "\u0663",
    "\uff21",
    "\ud800",
]
HOSTILE_TEXT = st.lists(
    st.sampled_from([*HOSTILE, *"abcXYZ019._-/:@*%$#'\"\\ {}()[];&|<>=+,~`?!^", "..", "%2e", "://"]),
    max_size=20,
).map("".join)
STRICT = [
    names.parse_name,
    names.parse_group_name,
    names.parse_domain,
    names.parse_gateway_domain,
    names.parse_address,
    names.parse_private_address,
    names.parse_network,
    names.parse_route_prefix,
    names.parse_path_prefix,
    names.parse_environment_name,
    names.parse_tag_name,
    names.parse_image,
    names.parse_unix_user,
    names.parse_backend_name,
    names.parse_model_name,
    names.parse_model_asset,
    names.parse_email,
    names.parse_origin,
    names.parse_fingerprint,
    names.check_reference,
]
WITHOUT_SPACES = [
    *STRICT, names.parse_request_target, names.parse_header_name, names.parse_web_address, names.parse_login,
]  # fmt: skip
ON_ONE_LINE = [*WITHOUT_SPACES, names.parse_header_value, names.parse_tag_value, names.parse_identifier]


def accepted(parse: Callable[[str], str], value: str) -> str | None:
    with contextlib.suppress(ValueError):
        return parse(value)
    return None


@pytest.mark.parametrize("parse", ON_ONE_LINE)
@settings(max_examples=40)
@given(HOSTILE_TEXT | st.text(max_size=12))
def test_only_printable_ascii_passes(parse: Callable[[str], str], value: str) -> None:
    passed = accepted(parse, value)
    if passed is not None:
        assert passed.isascii()
        assert passed.isprintable()
        assert len(passed) <= 2048
        if parse in WITHOUT_SPACES:
            assert not set(passed) & set(" ")
        if parse in STRICT:
            assert not set(passed) & set("'\"\\#${}()[];&|<>`?!^")
        assert parse(passed) == passed


@pytest.mark.parametrize("parse", ON_ONE_LINE)
@pytest.mark.parametrize("character", HOSTILE)
def test_no_hostile_character_hides_at_either_end(parse: Callable[[str], str], character: str) -> None:
    good = GOOD[parse]
    assert accepted(parse, good) is not None
    assert accepted(parse, good + character) is None
    assert accepted(parse, character + good) is None
    assert accepted(parse, f"{good}{character}{good}") is None


@pytest.mark.parametrize("parse", [names.parse_path, names.parse_container_path, names.parse_shell])
@given(HOSTILE_TEXT)
def test_paths_have_no_control_characters(parse: Callable[[str], str], value: str) -> None:
    passed = accepted(parse, value)
    assert passed is None or passed.isprintable()


@given(HOSTILE_TEXT)
def test_container_paths_stay_where_they_are(value: str) -> None:
    passed = accepted(names.parse_container_path, "/" + value)
    if passed is not None:
        assert ".." not in passed.split("/")
        assert ":" not in passed


GOOD: dict[Callable[[str], str], str] = {
    names.parse_name: "a",
    names.parse_group_name: "0",
    names.parse_domain: "api.example.com",
    names.parse_gateway_domain: "*.example.com",
    names.parse_address: "10.0.0.1",
    names.parse_private_address: "10.0.0.1",
    names.parse_network: "10.0.0.0/24",
    names.parse_route_prefix: "/api/",
    names.parse_path_prefix: "/api",
    names.parse_environment_name: "HOME",
    names.parse_tag_name: "team",
    names.parse_image: "ghcr.io/acme/model:1.2",
    names.parse_unix_user: "1000:1000",
    names.parse_backend_name: "aws",
    names.parse_model_name: "google/gemma-3",
    names.parse_model_asset: "s3://bucket/model.onnx",
    names.parse_email: "ops@example.com",
    names.parse_origin: "https://app.example.com:8443",
    names.parse_fingerprint: "SHA256:" + "A" * 43,
    names.check_reference: "other/gpu",
    names.parse_request_target: "/health?a=b",
    names.parse_header_name: "X-Key",
    names.parse_web_address: "https://acme.example.com:14000/dir",
    names.parse_login: "ubuntu",
    names.parse_header_value: "a b",
    names.parse_tag_value: "a b",
    names.parse_identifier: "eu-west-1",
}


@pytest.mark.parametrize(
    "image",
    ["nginx", "nginx:1.27", "ghcr.io/acme/model:1.2", "localhost:5000/a/b_c/d__e:tag.1",
     "REG.example.com/a",
     "a@sha256:" + "0" * 64, "ghcr.io/huggingface/text-generation-inference:0.9.3",
     "a/b/c/d:v1@sha256:" + "f" * 64],
)  # fmt: skip
def test_images(image: str) -> None:
    assert names.parse_image(image) == image


@pytest.mark.parametrize(
    "image",
    ["", "Nginx", "a b", "a:", ":1", "a//b",
     "a:b:c:d", "a@sha256:0", "-a", "a/-b", "a" * 600, "http://a/b",
     "a:-x", "--privileged", "a/B"],
)  # fmt: skip
def test_what_is_no_image(image: str) -> None:
    assert accepted(names.parse_image, image) is None


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("Example.COM", "example.com"), ("example.com.", "example.com"), ("localhost", "localhost"),
     ("a-b.example.com", "a-b.example.com"), ("xn--bcher-kva.example", "xn--bcher-kva.example")],
)  # fmt: skip
def test_domains(typed: str, kept: str) -> None:
    assert names.parse_domain(typed) == kept
    assert names.parse_gateway_domain(f"*.{typed}") == kept


@pytest.mark.parametrize(
    "typed",
    ["", ".", "*.example.com", "a..b", "-a.com", "a-.com", "10.0.0.1", "a_b.com", "bücher.example",
     "a" * 64 + ".com",
     ".".join(["a" * 60] * 5), "a.com:80", "a.com/x", "1.2", "[::1]"],
)  # fmt: skip
def test_what_is_no_domain(typed: str) -> None:
    assert accepted(names.parse_domain, typed) is None


def test_addresses() -> None:
    assert names.parse_address("GPU_box.lan") == "gpu_box.lan"
    assert names.parse_address("2001:DB8::1") == "2001:db8::1"
    assert accepted(names.parse_address, "-oProxyCommand=x") is None
    assert accepted(names.parse_address, "a b") is None


@pytest.mark.parametrize(
    "path", ["/../a", "/a/..", "/./a", "/%2e%2e/a", "/%2E./a", "//a", "/a//b", "a", "/a;b", "/a b"]
)
def test_route_prefixes_have_no_tricks(path: str) -> None:
    assert accepted(names.parse_route_prefix, path) is None


@pytest.mark.parametrize(("typed", "kept"), [("/", "/"), ("/api/", "/api"), ("/a/b", "/a/b")])
def test_path_prefixes_end_without_a_slash(typed: str, kept: str) -> None:
    assert names.parse_path_prefix(typed) == kept


@pytest.mark.parametrize("tag", ["prefect-dstack", "prefect-dstack/service", "Prefect-Dstack.x", "aws:name"])
def test_our_own_tags_are_reserved(tag: str) -> None:
    assert accepted(names.parse_tag_name, tag) is None


@given(st.integers() | st.floats() | st.text(max_size=8) | st.booleans() | st.none())
def test_ports_are_from_1_to_65535(value: Any) -> None:
    with contextlib.suppress(ValueError):
        port = parse_port(value)
        assert type(port) is int
        assert 1 <= port <= 65535
