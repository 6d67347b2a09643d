from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dstack.errors import ConflictError, NotFoundError
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route, RouteReplica, free_port
from tests.gateways.world import with_token

STATE = GatewayState(name="gate", base_port=80, https_port=443, bind_address="*")
R1 = RouteReplica(name="r1", address="10.0.0.1", port=8000)


def route(service: str = "hello", **fields: Any) -> Route:
    return Route.model_validate({"service": service, "port": 80, **fields})


def test_a_state_survives_json() -> None:
    state = (
        STATE.with_route(
            route(
                hosts=["a.example.com"],
                path_prefix="/v1",
                strip_prefix=True,
                rate_limits=[{"rps": 2.5, "burst": 3, "key": {"type": "header", "header": "X-Key"}}],
                cors={"allow_origins": ["*"]},
                health_check={"path": "/health", "headers": [["Host", "x"]]},
            )
        )
        .with_replica("hello", R1)
        .with_challenge("abc", "abc.def")
        .with_certificate("a.example.com")
    )
    token = AcceptedToken(sha256="0" * 64, expires_at=datetime.now(UTC))
    state = with_token(state, "hello", "t", token)
    assert GatewayState.model_validate_json(state.model_dump_json()) == state


def test_a_route_of_an_earlier_version_is_read_without_what_is_gone() -> None:
    state = STATE.with_route(route())
    written = json.loads(state.model_dump_json())
    written["routes"]["hello"] |= {"retry_idempotent": False, "measured": True}
    assert GatewayState.model_validate_json(json.dumps(written)) == state


def test_transitions_leave_the_old_state_alone() -> None:
    before = STATE.with_route(route())
    after = before.with_replica("hello", R1)
    assert before.routes["hello"].replicas == {}
    assert after.routes["hello"].replicas == {"r1": R1}
    drained = after.draining("hello", "r1")
    assert (drained.routes["hello"].replicas["r1"].state, R1.state) == ("drain", "ready")
    assert drained.routes["hello"].replicas["r1"].effective_weight == 0
    assert after.with_weight("hello", "r1", 7).routes["hello"].replicas["r1"].weight == 7
    assert after.without_replica("hello", "r1") == before
    assert before.without_route("hello") == STATE


def test_removing_what_is_not_there_changes_nothing() -> None:
    state = STATE.with_route(route())
    assert state.without_replica("hello", "nobody") == state
    assert state.without_route("nobody") == state
    assert state.without_token("hello", "nobody") == state
    assert state.without_token(None, "nobody") == state
    assert state.without_challenge("nobody") == state


def test_unknown_services_and_replicas_are_named() -> None:
    with pytest.raises(NotFoundError, match="gateway 'gate' has no route for service 'nobody'"):
        STATE.with_replica("nobody", R1)
    with pytest.raises(NotFoundError, match="service 'hello' has no replica 'r9' at gateway 'gate'"):
        STATE.with_route(route()).draining("hello", "r9")


@pytest.mark.parametrize(
    ("held", "wanted", "problem"),
    [
        ({}, {}, "port 80 of the gateway belongs to service 'held'"),
        (
            {"hosts": ["a.test"]},
            {"hosts": ["b.test", "a.test"]},
            "a.test/ on port 80 belongs to service 'held'",
        ),
        (
            {"hosts": ["a.test"], "path_prefix": "/x"},
            {"hosts": ["a.test"], "path_prefix": "/x/"},
            "a.test/x on port 80 belongs to service 'held'",
        ),
        ({"hosts": ["a.test"]}, {}, "port 80 of the gateway is shared by host name with service 'held'"),
        ({}, {"hosts": ["a.test"]}, "port 80 of the gateway belongs to service 'held'"),
        ({"path_prefix": "/%7Ea"}, {"path_prefix": "/~a"}, "belongs to service 'held'"),
    ],
)
def test_a_conflict_names_the_other_service(
    held: dict[str, Any], wanted: dict[str, Any], problem: str
) -> None:
    state = STATE.with_route(route("held", **held))
    with pytest.raises(ConflictError, match=problem):
        state.with_route(route("wanted", **wanted))


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ({"hosts": ["a.test"]}, {"hosts": ["b.test"]}),
        ({"hosts": ["a.test"]}, {"hosts": ["a.test"], "path_prefix": "/x"}),
        ({"hosts": ["a.test"]}, {"hosts": ["a.test"], "port": 81}),
        ({"port": 81}, {}),
        ({}, {"path_prefix": "/x"}),
    ],
)
def test_services_share_a_gateway_by_host_port_or_path(held: dict[str, Any], wanted: dict[str, Any]) -> None:
    state = STATE.with_route(route("held", **held)).with_route(route("wanted", **wanted))
    assert set(state.routes) == {"held", "wanted"}
    assert state.with_route(route("wanted", **wanted)) == state


def test_the_https_port_is_nobodys() -> None:
    with pytest.raises(ConflictError, match="port 443 is the HTTPS port"):
        STATE.with_route(route(port=443))


def test_a_local_gateway_listens_only_where_services_are() -> None:
    local = GatewayState(name="local", base_port=8080)
    assert local.http_ports == []
    assert local.with_route(route(port=8081)).http_ports == [8081]
    assert STATE.http_ports == [80]


def test_the_next_free_port_is_found_and_kept() -> None:
    local = GatewayState(name="local", base_port=8080)
    busy = {8081}

    def is_free(port: int) -> bool:
        return port not in busy

    assert free_port(local, "a", 8080, is_free) == 8080
    local = local.with_route(route("a", port=8080))
    busy.add(8080)
    assert free_port(local, "a", 8080, is_free) == 8080, "its own"
    assert free_port(local, "b", 8080, is_free) == 8082
    assert free_port(local, "b", 8080, is_free, path_prefix="/b") == 8080, "by path"
    with pytest.raises(ConflictError, match="no port from 65530 up is free on gateway 'local'"):
        free_port(local, "b", 65530, lambda port: False)


@pytest.mark.parametrize(
    "fields",
    [
        {"strip_prefix": True},
        {"rate_limits": [{"rps": 1}, {"rps": 2}]},
        {"rate_limits": [{"rps": 1, "key": {"type": "header", "header": "X#Y"}}]},
        {"hosts": ["a.test", "A.test"]},
        {"replicas": {"other": R1}},
        {"port": 0},
        {"path_prefix": "/%zz"},
        {"health_check": {"headers": [["Content-Length", "5"]]}},
        {"tokens": {"t": {"sha256": "secret"}}},
        {"tokens": {"t": {"sha256": "0" * 64, "expires_at": "2030-01-01T00:00:00"}}},
        {"surprise": 1},
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        route(**fields)


HOSTILE = st.text(max_size=30) | st.sampled_from(
    [
        "a\nbackend x",
        "a b",
        "a;b",
        "a'b",
        'a"b',
        "a#b",
        "a\\b",
        "../a",
        "a\x00",
        "%[src]",
        "${HOME}",
        "",
        "a" * 300,
    ]
)


@given(HOSTILE)
def test_names_that_pass_are_plain_words(text: str) -> None:
    for make in (
        lambda: route(service=text),
        lambda: RouteReplica(name=text, address="127.0.0.1", port=1),
        lambda: route(hosts=[text]),
        lambda: STATE.with_certificate(text),
        lambda: with_token(STATE, None, text, AcceptedToken(sha256="0" * 64)),
        lambda: STATE.with_challenge(text, "a.b"),
        lambda: STATE.with_challenge("a", text),
    ):
        try:
            accepted = make()
        except ValidationError:
            continue
        written = json.loads(accepted.model_dump_json())
        words = str(written).replace("{", "").replace("'", "")
        assert "\\n" not in words
        assert all(character.isalnum() or character in "-._" for character in text)


@given(HOSTILE)
def test_addresses_that_pass_are_ip_addresses(text: str) -> None:
    try:
        RouteReplica(name="r", address=text, port=1)
    except ValidationError:
        return
    assert all(character in "0123456789abcdefABCDEF.:%" for character in text)


def test_an_expiry_needs_a_zone() -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert AcceptedToken(sha256="0" * 64, expires_at=soon).expires_at == soon
