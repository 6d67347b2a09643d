"""Whatever a client types, the configuration has exactly the directives that the template writes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck as Slow
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dstack.gateways import quoting
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route, RouteReplica
from prefect_dstack.gateways.template import CONFIGURATION, render

HOSTILE = " \t\n\r\x00\x7f'\"\\#$%{}[]()<>|&;*?!`~^=,:+@./-_aZ0é\u2028"
PAYLOADS = [
    "x\n    http-request allow",
    "x\r\nbackend evil",
    "' http-request allow '",
    "x # comment",
    "x'\\'' y",
    "%[src]",
    "%%[src]",
    "${HOME}",
    '"${HOME}"',
    "\\n    bind *:1",
    "x' if TRUE",
    "a\\",
    "a\\'",
    "{ ssl_fc }",
    "x,regsub(a,b)",
    "/x y",
]
text = st.one_of(st.sampled_from(PAYLOADS), st.text(alphabet=HOSTILE, min_size=1, max_size=24))


def tokens(line: str) -> list[str]:
    """Split a line as HAProxy does: quotes, backslashes, comments."""
    words: list[str] = []
    word: str | None = None
    quote, index = "", 0
    while index < len(line):
        character = line[index]
        if quote == "'":
            quote, word = ("", word) if character == "'" else (quote, (word or "") + character)
        elif character == "\\" and index + 1 < len(line):
            index += 1
            word = (word or "") + {"n": "\n", "t": "\t", "r": "\r"}.get(line[index], line[index])
        elif character == '"':
            quote, word = ("" if quote else '"'), word or ""
        elif quote:
            word = (word or "") + character
        elif character == "'":
            quote, word = "'", word or ""
        elif character == "#":
            break
        elif character.isspace():
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + character
        index += 1
    assert not quote, f"an open quote: {line}"
    return words if word is None else [*words, word]


def shape(state: GatewayState) -> list[tuple[str, int]]:
    """The directives of a configuration: each line's first word, and how many words it has."""
    configuration = render(state)[CONFIGURATION].decode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", configuration)
    parsed = (tokens(line) for line in configuration.split("\n"))
    return [(words[0], len(words)) for words in parsed if words]


def state(**fields: Any) -> GatewayState:
    route = {
        "service": "hello",
        "port": 80,
        "hosts": ["a.test"],
        "path_prefix": "/x",
        "strip_prefix": True,
        "auth": True,
        "tokens": {"t": AcceptedToken(sha256="0" * 64)},
        "max_concurrency": 3,
        "rate_limits": [
            {
                "rps": 1,
                "prefix": fields.pop("limit_prefix", "/x"),
                "key": {"type": "header", "header": fields.pop("limit_header", "X-Key")},
            },
            {"rps": 2, "prefix": "/"},
        ],
        "cors": {
            "allow_origins": [fields.pop("origin", "https://a.test")],
            "allow_headers": [fields.pop("cors_header", "X-A")],
        },
        "health_check": {
            "path": fields.pop("check_path", "/health"),
            "headers": [[fields.pop("check_header", "X-B"), fields.pop("check_value", "b")]],
            "body": fields.pop("check_body", "body"),
            "method": "post",
        },
        "model": {
            "name": fields.pop("model_name", "org/model"),
            "prefix": fields.pop("model_prefix", "/v1"),
            "created": 1,
        },
        "replicas": {"r1": RouteReplica(name="r1", address="127.0.0.1", port=8000)},
        "preview": {"revision": 2, "replica": RouteReplica(name="r2", address="127.0.0.1", port=8001)},
        **fields,
    }
    gateway = GatewayState(
        name="gate", base_port=80, https_port=443, bind_address="*", certificates=("a.test",)
    )
    return gateway.with_route(Route.model_validate(route))


FIELDS = {
    "path_prefix": text.map(lambda value: f"/{value}"),
    "limit_prefix": text.map(lambda value: f"/{value}"),
    "limit_header": text,
    "model_name": text,
    "model_prefix": text.map(lambda value: f"/{value}"),
    "origin": text.map(lambda value: f"https://{value}"),
    # `*` stands for any header.
    "cors_header": text.filter(lambda value: value != "*"),
    "check_path": text.map(lambda value: f"/{value}"),
    "check_header": text,
    "check_value": text,
    "check_body": text,
    "service": text,
    "hosts": st.lists(text, min_size=1, max_size=1),
}
TAME = shape(state())


@pytest.mark.parametrize("field", FIELDS)
@settings(suppress_health_check=[Slow.too_slow], max_examples=30, deadline=None)
@given(data=st.data())
def test_no_value_becomes_a_directive(field: str, data: st.DataObject) -> None:
    value = data.draw(FIELDS[field])
    try:
        hostile = state(**{field: value})
    except ValidationError:
        return
    assert shape(hostile) == TAME


def printable(field: str) -> str:
    """The most hostile value that a field accepts."""
    candidates = {
        "path_prefix": "/a.b_c~d%2Fe:f@g+h,i=j",
        "limit_prefix": "/a.b_c~d%2Fe:f@g+h,i=j",
        "limit_header": "X_-a",
        "model_name": "a.b_c/d:e@f+g-h",
        "model_prefix": "/a.b_c~d%2Fe:f@g+h,i=j",
        "origin": "chrome-extension+a.b://*.a-b_c.test:*",
        "cors_header": "!#$%&'*+.^_`|~0aZ-",
        "check_path": "/!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~%[src]",
        "check_header": "!#$%&'*+.^_`|~0aZ-",
        "check_value": "a b !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ${HOME} %[src] \\n",
        "check_body": '{"a": "b\' \\" c",\n\t"d": "%[src] ${HOME} # é"}\n',
    }
    return candidates[field]


@pytest.fixture
def checked(haproxy: str, tmp_path: Path) -> Any:
    """Has HAProxy read a configuration, and tells what it says."""

    def check(it: GatewayState) -> subprocess.CompletedProcess[str]:
        for name, data in render(it).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        (tmp_path / "certificates").mkdir(exist_ok=True)
        return subprocess.run(
            [haproxy, "-c", "-f", "haproxy.cfg"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return check


HOSTILE_BUT_VALID = {field: printable(field) for field in FIELDS if field not in ("service", "hosts")}


@pytest.mark.parametrize("field", HOSTILE_BUT_VALID)
def test_haproxy_accepts_every_value_that_we_do(field: str, checked: Any) -> None:
    it = state(**{field: HOSTILE_BUT_VALID[field]}).model_copy(
        update={"certificates": (), "https_port": None}
    )
    outcome = checked(it)
    assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stderr


def test_haproxy_has_no_word_of_complaint_about_any_feature(checked: Any) -> None:
    everything = state(https_redirect=False, client_max_body_size=None, hold_limit=5)
    everything = everything.model_copy(update={"https_port": None, "certificates": ()})
    for it in (
        everything,
        GatewayState(name="gate", bind_address="*"),
        everything.without_replica("hello", "r1"),
    ):
        outcome = checked(it)
        assert (outcome.returncode, outcome.stderr) == (0, "")


@given(text)
def test_a_quoted_value_is_one_word_again(value: str) -> None:
    try:
        quoted = quoting.quote(value)
    except ValueError:
        assert re.search(r"[\x00-\x08\x0b-\x1f\x7f]", value)
        return
    assert "\n" not in quoted
    assert tokens(f"a {quoted} b") == ["a", value, "b"]


@given(text)
def test_a_word_of_the_command_line_cannot_end_a_command(value: str) -> None:
    try:
        quoting.word(value)
    except ValueError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_.:/*\[\]-]+", value)


def test_files_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    assert not any(
        b"/work" in data or b"/tmp" in data or b"/home" in data for data in render(state()).values()
    )


def test_a_thousand_services_are_a_thousand_backends_and_flat_maps() -> None:
    gateway = GatewayState(name="gate", base_port=80, bind_address="*")
    routes = {f"s{n}": Route(service=f"s{n}", port=80, hosts=(f"s{n}.test",)) for n in range(1000)}
    files = render(gateway.model_copy(update={"routes": routes}))
    assert files[CONFIGURATION].count(b"\nbackend service:") == 1000
    assert files[CONFIGURATION].count(b"\nfrontend ") == 2
    assert files["routes.map"].count(b"\n") == 1000
