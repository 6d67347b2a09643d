"""What is done through the runtime API, as text, and what needs a reload."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_dstack.gateways.changes import Changes, changes
from prefect_dstack.gateways.health import HealthCheck
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route, RouteReplica
from tests.gateways.world import with_token

LOCAL = RouteReplica(name="r2", address="127.0.0.1", port=8000)
R1 = RouteReplica(name="r1", address="10.0.0.1", port=8000)
R2 = RouteReplica(name="r2", address="10.0.0.2", port=8000)
ROUTE = Route(service="hello", port=80, hosts=("a.test",), auth=True)
STATE = (
    GatewayState(name="gate", base_port=80, https_port=443, bind_address="*")
    .with_route(ROUTE)
    .with_replica("hello", R1)
)
TOKEN = AcceptedToken(sha256="a" * 64, expires_at=datetime(2030, 1, 1, tzinfo=UTC))
CHECKED = (
    "check inter 2s fastinter 500ms downinter 1s fall 2 rise 1 observe layer4 error-limit 3 "
    "on-error mark-down on-marked-down shutdown-sessions"
)


def texts(new: GatewayState, old: GatewayState = STATE) -> list[str]:
    plan = changes(old, new)
    assert not plan.reload
    return [command.text for command in plan.commands]


def test_nothing_comes_of_nothing() -> None:
    assert changes(STATE, STATE) == Changes()


def test_a_replica_is_added() -> None:
    assert texts(STATE.with_replica("hello", R2)) == [
        f"add server service:hello/r2 10.0.0.2:8000 weight 100 pool-purge-delay 1s {CHECKED}",
        "enable health service:hello/r2",
        "enable server service:hello/r2",
    ]


def test_a_replica_that_nobody_checks_is_added() -> None:
    ipv6 = RouteReplica(name="r2", address="::1", port=8000, checked=False)
    assert texts(STATE.with_replica("hello", ipv6)) == [
        "add server service:hello/r2 [::1]:8000 weight 100 pool-purge-delay 1s",
        "enable server service:hello/r2",
    ]


def test_a_replica_whose_checks_do_not_tell_whether_its_host_is_gone_needs_a_reload() -> None:
    """HAProxy takes the time-out of unacknowledged data from its configuration only."""
    probed = STATE.with_route(STATE.routes["hello"].model_copy(update={"health_check": HealthCheck()}))
    assert changes(probed, probed.with_replica("hello", R2)).reload
    assert changes(STATE, STATE.with_replica("hello", R2.model_copy(update={"checked": False}))).reload
    assert not changes(probed, probed.with_replica("hello", LOCAL)).reload
    assert not changes(probed, probed.without_replica("hello", "r1")).reload
    assert not changes(probed, probed.draining("hello", "r1")).reload


def test_a_replica_is_drained_and_removed() -> None:
    both = STATE.with_replica("hello", R2)
    drained = both.draining("hello", "r1")
    assert texts(drained, both) == ["set server service:hello/r1 weight 0"]
    assert texts(drained.without_replica("hello", "r1"), drained) == [
        "disable server service:hello/r1",
        "shutdown sessions server service:hello/r1",
        "del server service:hello/r1",
    ]


def test_the_new_come_before_the_old_go() -> None:
    swapped = STATE.with_replica("hello", R2).without_replica("hello", "r1")
    assert [text.split()[0] for text in texts(swapped)] == [
        "add",
        "enable",
        "enable",
        "disable",
        "shutdown",
        "del",
    ]


def test_a_replica_that_moved_is_made_anew() -> None:
    moved = STATE.with_replica("hello", R1.model_copy(update={"port": 9000}))
    assert [text.split()[0] for text in texts(moved)] == [
        "disable",
        "shutdown",
        "del",
        "add",
        "enable",
        "enable",
    ]


def test_tokens_and_challenges_are_entries_of_maps() -> None:
    known = with_token(STATE, "hello", "t", TOKEN)
    assert texts(known) == [f"add map tokens.map hello/{'a' * 64} 1893456000"]
    forever = with_token(known, "hello", "t", AcceptedToken(sha256="a" * 64))
    assert texts(forever, known) == [f"set map tokens.map hello/{'a' * 64} 253402300799"]
    assert texts(STATE, known) == [f"del map tokens.map hello/{'a' * 64}"]
    assert texts(with_token(STATE, None, "t", TOKEN)) == [f"add map tokens.map */{'a' * 64} 1893456000"]
    assert texts(STATE.with_challenge("tok", "tok.print")) == [
        "add map challenges.map /.well-known/acme-challenge/tok tok.print"
    ]


def test_a_map_that_nothing_looks_into_needs_no_command() -> None:
    quiet = STATE.with_route(Route(service="hello", port=80)).model_copy(update={"https_port": None})
    assert texts(with_token(quiet, "hello", "t", TOKEN).with_challenge("tok", "tok.print"), quiet) == []


def test_changes_of_two_services_come_together() -> None:
    two = STATE.with_route(Route(service="other", port=80, hosts=("b.test",)))
    both = two.with_replica("hello", R2).with_replica("other", R2)
    added = [text.split()[2] for text in texts(both, two) if text.startswith("add server")]
    assert added == ["service:hello/r2", "service:other/r2"]


@pytest.mark.parametrize(
    "fields",
    [
        {"auth": False},
        {"hosts": ("c.test",)},
        {"path_prefix": "/x"},
        {"max_concurrency": 3},
        {"client_max_body_size": 5},
        {"queue_timeout": 3},
        {"hold_limit": 3},
        {"hold_timeout": 3},
        {"rate_limits": ({"rps": 3},)},
        {"cors": {"allow_origins": ("*",)}},
        {"health_check": {"path": "/health"}},
        {"timeouts": {"connect": 9}},
        {"preview": {"revision": 2, "replica": {"name": "r9", "address": "127.0.0.1", "port": 9}}},
    ],
)
def test_a_setting_of_a_service_needs_a_reload(fields: dict[str, Any]) -> None:
    changed = Route.model_validate({**dict(STATE.routes["hello"]), **fields})
    assert changes(STATE, STATE.with_route(changed)).reload


def test_services_and_settings_of_the_gateway_need_a_reload() -> None:
    assert changes(STATE, STATE.with_route(Route(service="other", port=81))).reload
    assert changes(STATE, STATE.without_route("hello")).reload
    assert changes(STATE, STATE.with_certificate("a.test")).reload
    assert changes(STATE, STATE.model_copy(update={"https_port": 444})).reload


def test_a_canary_begins_and_ends_with_a_reload_and_grows_without() -> None:
    """Exact shares need another way of balancing, which HAProxy only takes from its configuration."""
    canary = STATE.with_replica("hello", R2.model_copy(update={"weight": 10})).with_weight("hello", "r1", 90)
    assert changes(STATE, canary).reload
    grown = canary.with_weight("hello", "r2", 50)
    assert texts(grown, canary) == ["set server service:hello/r2 weight 50"]
    assert changes(grown, grown.with_weight("hello", "r2", 90)).reload
    gone = grown.draining("hello", "r2")
    assert changes(grown, gone).reload
