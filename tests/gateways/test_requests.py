"""What reaches which application, and what a client is told when nothing may."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.gateways.application import Answer, Application, Load, raw, raw_answers, request
from tests.gateways.conftest import replica
from tests.gateways.world import World, token, with_token
from tests.polling import wait_until

pytestmark = pytest.mark.integration


def test_an_unknown_host_gets_404_in_json(world: World) -> None:
    world.service()
    answer = request(world.port, host="nobody.test")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json()["error"]["code"] == 404


@pytest.mark.parametrize("spelling", ["{}.test", "{}.TEST", "{}.test.", "{}.test:80"])
def test_a_host_is_found_in_every_spelling(world: World, spelling: str) -> None:
    name, _ = world.service()
    assert request(world.port, host=spelling.format(name)).body == name.encode()


def test_a_service_without_replicas_gets_503_and_when_to_come_back(world: World) -> None:
    name, _ = world.service(replicas={})
    answer = world.get(name)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["type"] == "unavailable"


def test_the_longest_prefix_wins_and_only_whole_segments_count(world: World) -> None:
    root, _ = world.service()
    host = f"{root}.test"
    api, seen = world.service(hosts=[host], path_prefix="/api/v1", strip_prefix=True)
    for target, expected in {
        "/": root,
        "/api": root,
        "/api/v10": root,
        "/api/v1": api,
        "/api/v1?x=1": api,
        "/api/v1/deep": api,
        "/x/../api/v1/deep": api,
        "/api/%76%31/deep": api,
        "//api//v1//deep": api,
        "/api;a=b/v1/deep": api,
    }.items():
        assert request(world.port, target, host=host).body == expected.encode(), target
    assert request(world.port, "/api/v1/echo?x=1", host=host).json()["target"] == "/echo?x=1"
    assert request(world.port, "//api//v1//echo", host=host).json()["target"] == "/echo"
    assert (
        dict(request(world.port, "/api/v1/echo", host=host).json()["headers"])["x-forwarded-prefix"]
        == "/api/v1"
    )
    assert any(it.target == "/" for it in seen.seen)


def test_the_application_sees_who_asked_and_how(world: World) -> None:
    name, _ = world.service()
    answer = request(world.port, "/echo", host=f"{name}.test:1234")
    headers = dict(answer.json()["headers"])
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == f"{name}.test:1234"
    assert headers["host"] == f"{name}.test:1234"
    absolute = f"GET http://{name}.test/echo?x=1 HTTP/1.1\r\nHost: {name}.test\r\nConnection: close\r\n\r\n"
    assert raw(world.port, absolute.encode()).json()["target"] == "/echo?x=1"


def test_tokens_open_what_they_are_for(world: World) -> None:
    name, application = world.service(
        auth=True,
        tokens={
            "mine": token("right"),
            "old": token("late", datetime.now(UTC) - timedelta(seconds=1)),
            "new": token("early", datetime.now(UTC) + timedelta(hours=1)),
        },
    )
    other, _ = world.service(auth=True, tokens={"theirs": token("foreign")})

    def status(value: str | None, service: str = name) -> int:
        return world.get(service, headers={} if value is None else {"Authorization": value}).status

    assert status(None) == 401
    assert status("Bearer right") == 200
    assert status("bearer right") == 200
    assert status("Bearer early") == 200
    assert status("Bearer late") == 401
    assert status("Bearer wrong") == 401
    assert status("Bearer") == 401
    assert status("Bearer ") == 401
    assert status("Basic right") == 401
    assert status("right") == 401
    assert status("Bearer right, Bearer wrong") == 401
    assert status("Bearer right", other) == 401
    assert status("Bearer foreign", other) == 200
    answer = world.get(name)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == 401
    assert all(seen.header("authorization") is None for seen in application.seen)
    assert len(application.seen) == 3


def test_a_token_of_the_gateway_opens_every_service(world: World) -> None:
    name, _ = world.service(auth=True)
    world.gateway.change(lambda state: with_token(state, None, "all", token("master")))
    assert world.get(name, headers={"Authorization": "Bearer master"}).status == 200
    world.gateway.change(lambda state: state.without_token(None, "all"))
    assert world.get(name, headers={"Authorization": "Bearer master"}).status == 401


def test_a_token_is_given_and_taken_without_a_reload(world: World) -> None:
    name, _ = world.service(auth=True)
    workers = world.gateway._workers().current
    ask = {"Authorization": "Bearer s3cret"}
    world.gateway.change(lambda state: with_token(state, name, "t", token("s3cret")))
    assert world.get(name, headers=ask).status == 200
    world.gateway.change(lambda state: state.without_token(name, "t"))
    assert world.get(name, headers=ask).status == 401
    assert world.gateway._workers().current == workers


def test_a_token_may_be_forwarded(world: World) -> None:
    name, application = world.service(auth=True, forward_authorization=True, tokens={"t": token("right")})
    world.get(name, headers={"Authorization": "Bearer right"})
    assert application.seen[-1].header("authorization") == "Bearer right"


def test_without_auth_the_applications_own_tokens_pass(world: World) -> None:
    name, application = world.service()
    world.get(name, headers={"Authorization": "Basic abc"})
    assert application.seen[-1].header("authorization") == "Basic abc"


def chunked(name: str, size: int, chunk: int = 8192) -> bytes:
    head = (
        f"POST /echo HTTP/1.1\r\nHost: {name}.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    body = b"".join(
        f"{min(chunk, size - start):x}\r\n".encode() + b"x" * min(chunk, size - start) + b"\r\n"
        for start in range(0, size, chunk)
    )
    return head.encode() + body + b"0\r\n\r\n"


def test_a_body_may_be_so_large_and_no_larger(world: World) -> None:
    name, application = world.service(client_max_body_size=100_000)
    assert world.get(name, "/echo", method="POST", body=b"x" * 100_000).json()["size"] == 100_000
    answer = world.get(name, "/echo", method="POST", body=b"x" * 100_001)
    assert (answer.status, answer.json()["error"]["code"]) == (413, 413)
    assert len(application.seen) == 1
    for size in (2**31, 2**32 + 5, 2**40):
        head = f"POST /echo HTTP/1.1\r\nHost: {name}.test\r\nContent-Length: {size}\r\n\r\n"
        assert raw(world.port, head.encode() + b"x" * 1000).status == 413, size
    assert len(application.seen) == 1

    answer = raw(world.port, chunked(name, 100_000))
    assert answer.json()["size"] == 100_000
    headers = dict(answer.json()["headers"])
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert "x-gateway-listener" not in headers
    answer = raw(world.port, chunked(name, 100_001))
    assert (answer.status, answer.json()["error"]["code"]) == (413, 413)
    assert len(application.seen) == 2


def test_any_size_is_taken_where_there_is_no_limit(world: World) -> None:
    name, _ = world.service(client_max_body_size=None)
    assert raw(world.port, chunked(name, 300_000)).json()["size"] == 300_000


def statuses(world: World, name: str, count: int, **arguments: object) -> list[int]:
    return [world.get(name, **arguments).status for _ in range(count)]  # type: ignore[arg-type]


def test_a_rate_limit_lets_a_burst_through_and_says_when_to_come_back(world: World) -> None:
    name, application = world.service(rate_limits=[{"prefix": "/api", "rps": 0.2, "burst": 2}])
    assert statuses(world, name, 5, target="/api/x") == [200, 200, 200, 429, 429]
    answer = world.get(name, "/api/x")
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == 429
    for evasion in (
        "//api/x",
        "/x/../api/x",
        "/%61pi/x",
        "/api;x/y",
        "/./api",
        "/%2fapi/x",
        "/x/%2e%2e/api%2Fx",
    ):
        assert world.get(name, evasion).status == 429, evasion
    assert world.get(name, "/free").status == 200
    assert len(application.seen) == 4


def test_a_rate_limit_comes_back_with_time(world: World) -> None:
    name, _ = world.service(rate_limits=[{"rps": 20}])
    assert world.get(name).status == 200
    wait_until(lambda: world.get(name).status == 429, 5, interval=0)
    wait_until(lambda: world.get(name).status == 200, 5)


def test_the_most_specific_rate_limit_counts(world: World) -> None:
    name, _ = world.service(rate_limits=[{"rps": 0.1}, {"prefix": "/many", "rps": 1000, "burst": 1000}])
    assert statuses(world, name, 3) == [200, 429, 429]
    assert statuses(world, name, 20, target="/many") == [200] * 20


def test_a_rate_limit_can_count_by_header(world: World) -> None:
    name, _ = world.service(rate_limits=[{"rps": 0.1, "key": {"type": "header", "header": "X-Api-Key"}}])
    assert statuses(world, name, 2, headers={"X-Api-Key": "a"}) == [200, 429]
    assert statuses(world, name, 2, headers={"X-Api-Key": "b"}) == [200, 429]
    assert statuses(world, name, 2) == [200, 429]


def test_requests_beyond_the_concurrency_wait_for_their_turn(world: World) -> None:
    name, application = world.service(max_concurrency=1)
    answers: list[Answer] = []
    clients = [
        threading.Thread(target=lambda: answers.append(world.get(name, "/slow?seconds=0.2")))
        for _ in range(4)
    ]
    start = time.monotonic()
    for client in clients:
        client.start()
    wait_until(lambda: application.counts["slow"] >= 1)
    for client in clients:
        client.join()
    assert time.monotonic() - start >= 4 * 0.2
    assert [answer.status for answer in answers] == [200] * 4


def test_a_request_that_waited_too_long_gets_503(world: World) -> None:
    name, application = world.service(max_concurrency=1, queue_timeout=1)
    client = threading.Thread(target=lambda: world.get(name, "/slow?seconds=2"))
    client.start()
    wait_until(lambda: application.counts["slow"] == 1)
    answer = world.get(name)
    assert answer.status == 503
    assert "retry-after" in answer.headers
    client.join()


def test_websockets_pass_on_a_service_with_a_token(world: World) -> None:
    name, _ = world.service(auth=True, tokens={"t": token("right")})
    head = (
        f"GET /websocket HTTP/1.1\r\nHost: {name}.test\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    assert raw(world.port, f"{head}\r\n".encode()).status == 401
    assert raw(world.port, f"{head}Authorization: Bearer right\r\n\r\n".encode()).status == 101


def test_a_replica_that_is_gone_gets_no_request_and_nobody_notices(world: World) -> None:
    name, first = world.service()
    second = Application("second")
    world.applications.append(second)
    world.gateway.change(lambda state: state.with_replica(name, replica(second)))
    with Load(world.port, paths=("/",), host=f"{name}.test") as load:
        wait_until(lambda: len(load.replicas) == 2)
        first.stop()
        done = load.done
        wait_until(lambda: load.done > done + 200)
        wait_until(lambda: world.gateway.replica_health(name)[name].status == "DOWN", 5)
    assert [failure for failure in load.failures if failure.startswith("GET")] == []
    back = Application(name, first.port)
    world.applications.append(back)
    wait_until(lambda: world.gateway.replica_health(name)[name].status == "UP", 5)


def test_a_replica_that_failed_its_checks_is_still_out_after_a_reload(world: World) -> None:
    name, first = world.service()
    second = Application("second")
    world.applications.append(second)
    world.gateway.change(lambda state: state.with_replica(name, replica(second)))
    first.stop()
    wait_until(lambda: world.gateway.replica_health(name)[name].status == "DOWN")
    world.service()
    health = world.gateway.replica_health(name)
    assert (health[name].status, health["second"].status) == ("DOWN", "UP")
    assert world.gateway.place.read("servers.state") == b"1\n"


def test_get_is_sent_again_when_a_replica_dies_and_post_is_not(world: World) -> None:
    name, application = world.service()
    assert world.get(name, "/die").status == 502
    assert application.counts["die"] == 4
    assert world.get(name, "/die", method="POST", body=b"x").status == 502
    assert application.counts["die"] == 5


def test_a_replica_that_fails_its_check_is_out_until_it_passes(world: World) -> None:
    name, application = world.service(
        health_check={"path": "/health", "interval": 0.1, "timeout": 1, "fall": 2, "rise": 1}
    )
    assert world.get(name).status == 200
    application.healthy = False
    wait_until(lambda: world.get(name).status == 503)
    assert "503" in world.gateway.replica_health(name)[name].check
    application.healthy = True
    wait_until(lambda: world.get(name).status == 200)


def test_what_replicas_did_is_counted(world: World) -> None:
    name, _ = world.service()
    before = world.gateway.statistics(name)[name]
    assert (before.error_rate, before.p95) == (None, None)
    world.get(name)
    world.get(name, "/status?code=404")
    world.get(name, "/status?code=500")
    with contextlib.suppress(ConnectionError):
        world.get(name, "/die", method="POST", body=b"x")
    seen = world.gateway.statistics(name)[name]
    assert (seen.requests, seen.client_errors, seen.server_errors, seen.response_errors) == (3, 1, 1, 1)
    assert seen.error_rate == pytest.approx(2 / 4)


def test_how_long_replicas_take_is_measured(world: World) -> None:
    name, _ = world.service()
    world.get(name, "/slow?seconds=1")
    before = world.gateway.statistics(name)[name]
    for _ in range(18):
        world.get(name)
    world.get(name, "/slow?seconds=0.3")
    world.get(name, "/slow?seconds=0.3")
    seen = world.gateway.statistics(name)[name].since(before)
    assert seen.requests == sum(seen.durations) == 20
    assert seen.p95 is not None
    assert 200 < seen.p95 < 1000
    assert seen.mean is not None
    assert 10 < seen.mean < 300


def test_a_canary_gets_its_share(world: World) -> None:
    name, _ = world.service()
    canary = Application("canary")
    world.applications.append(canary)
    world.gateway.change(
        lambda state: state.with_replica(name, replica(canary, weight=10)).with_weight(name, name, 90)
    )
    got = [world.get(name).body for _ in range(100)]
    assert got.count(b"canary") == 10


def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    name, _ = world.service()
    ask = f"GET /echo?n={{}} HTTP/1.1\r\nHost: {name}.test\r\n\r\n"
    answers = raw_answers(world.port, "".join(ask.format(n) for n in range(3)).encode())
    assert [answer.json()["target"] for answer in answers] == [f"/echo?n={n}" for n in range(3)]
