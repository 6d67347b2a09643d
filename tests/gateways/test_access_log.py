"""What a gateway writes of requests: one line of JSON for each, and nothing that could be a secret."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_dstack.gateways.access_log import is_request_of
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, Load, raw_answers, request
from tests.gateways.conftest import replica, serve
from tests.gateways.test_https import certificate, handshake
from tests.gateways.waiting import held, held_by_current
from tests.gateways.world import token
from tests.polling import wait_until

pytestmark = pytest.mark.integration

Start = Callable[[str], Application]
KEPT = 1000
"""Bytes of a path that are written."""


def written(gateway: Gateway) -> list[str]:
    return list(gateway.place.log())


def requests_of(gateway: Gateway, service: str = "hello") -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(gateway) if is_request_of(line, service)]


def last_request(gateway: Gateway, number: int) -> dict[str, Any]:
    """The request of that number, which is the last one."""
    wait_until(lambda: len(requests_of(gateway)) >= number, 10, f"{number} requests are written")
    found = requests_of(gateway)
    assert len(found) == number
    return found[-1]


def test_a_line_says_what_a_client_saw(gateway: Gateway, port: int, application: Start) -> None:
    app = application("hello-3-1")
    serve(gateway, app, access_log=True)
    before = datetime.now(UTC)
    answer = request(port, "/slow?seconds=0.3&key=secret", headers={"Authorization": "Bearer secret"})
    assert answer.status == 200
    line = last_request(gateway, 1)
    assert timedelta(0) <= datetime.fromisoformat(line["time"]) - before + timedelta(seconds=0.01)
    assert datetime.fromisoformat(line.pop("time")) - before < timedelta(seconds=5)
    assert 300 <= line.pop("first_byte_ms") <= line.pop("duration_ms") < 5000
    assert line.pop("request_bytes") > len("GET /slow?seconds=0.3&key=secret HTTP/1.1")
    assert line.pop("response_bytes") > len(answer.body)
    assert line == {
        "service": "hello",
        "revision": "3",
        "replica": "hello-3-1",
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/slow",
        "status": 200,
        "retries": "0",
        "termination": "--",
    }
    request(port, "/events?count=5&seconds=0.1")
    line = last_request(gateway, 2)
    assert line["duration_ms"] >= 400 > line["first_byte_ms"], "the answer begins before it ends"
    assert "secret" not in "".join(written(gateway))


def test_only_requests_of_services_that_want_it_are_written(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, application("quiet-1-0"), service="quiet", hosts=["quiet.test"])
    request(port, host="quiet.test")
    serve(gateway, application("hello-1-0"), hosts=["hello.test"], access_log=True)
    request(port, host="quiet.test")
    request(port, host="nobody.test")
    for garbage in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"\x16\x03\x01"):
        raw_answers(port, garbage)
    request(port, "/seen", host="hello.test")
    assert last_request(gateway, 1)["path"] == "/seen"
    assert not [
        line
        for line in written(gateway)
        if line.startswith("{") and '"/seen"' not in line.replace("\\/", "/")
    ]
    gateway.change(
        lambda state: state.with_route(state.route("hello").model_copy(update={"access_log": False}))
    )
    request(port, "/unseen", host="hello.test")
    assert len(requests_of(gateway)) == 1


def test_what_the_gateway_answers_itself_is_written_without_a_replica(
    gateway: Gateway, port: int, application: Start
) -> None:
    app, tokens = application("hello-1-0"), {"t": token("right")}
    serve(gateway, app, access_log=True, auth=True, tokens=tokens, client_max_body_size=5)
    right = {"Authorization": "Bearer right"}
    assert request(port, "/a").status == 401
    assert request(port, "/b", headers=right, method="POST", body=b"too much").status == 413
    assert request(port, "/c", headers=right).status == 200
    last_request(gateway, 3)
    assert [(it["path"], it["status"], it["replica"], it["revision"]) for it in requests_of(gateway)] == [
        ("/a", 401, "", ""),
        ("/b", 413, "", ""),
        ("/c", 200, "hello-1-0", "1"),
    ]
    gateway.change(lambda state: state.without_replica("hello", "hello-1-0"))
    assert request(port, "/d", headers=right).status == 503
    line = last_request(gateway, 4)
    assert (line["path"], line["status"], line["termination"]) == ("/d", 503, "SC")
    assert "right" not in "".join(written(gateway))


def test_a_request_that_is_tried_elsewhere_says_so(gateway: Gateway, port: int, application: Start) -> None:
    gone, there = application("hello-1-0"), application("hello-1-1")
    serve(gateway, gone, there, access_log=True)
    gone.stop()
    for _ in range(2):
        assert request(port).status == 200
    last_request(gateway, 2)
    assert {it["replica"] for it in requests_of(gateway)} == {"hello-1-1"}
    assert any(it["retries"].startswith("+") for it in requests_of(gateway))


def test_every_request_is_written_once_over_a_reload(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("hello-1-0"), access_log=True)
    chunked = {"Transfer-Encoding": "chunked"}
    with Load(port, ("/", "/slow?seconds=0.02")) as load:
        gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
        for _ in range(20):
            assert (
                request(port, "/echo", method="POST", headers=chunked, body=b"2\r\nhi\r\n0\r\n\r\n").status
                == 200
            )
    assert load.failures == []
    wait_until(lambda: len(requests_of(gateway)) >= load.done + 20, 10, "all are written")
    found = requests_of(gateway)
    assert len(found) == load.done + 20
    assert sum(it["path"] == "/echo" for it in found) == 20
    assert {it["status"] for it in found} == {200}
    assert {it["client"] for it in found} == {"127.0.0.1"}


def test_waiting_for_a_first_replica_counts_over_a_reload_too(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, access_log=True, hold_limit=3)
    start = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(request, port)
        wait_until(lambda: held(gateway, "hello") == 1)
        wait_until(lambda: time.monotonic() - start >= 1)
        gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
        wait_until(lambda: held_by_current(gateway, "hello") == 1)
        gateway.change(lambda state: state.with_replica("hello", replica(application("hello-1-0"))))
        assert answer.result(20).status == 200
    line = last_request(gateway, 1)
    assert 1000 <= line["first_byte_ms"] <= (time.monotonic() - start) * 1000
    assert line["replica"] == "hello-1-0"


class Hostile:
    """A gateway that takes requests as raw bytes, over HTTP/1.1 and HTTP/2."""

    def __init__(self, gateway: Gateway, https_port: int) -> None:
        self.gateway, self.https_port = gateway, https_port
        self.port = gateway.state().base_port
        self.sent = 0

    def over_http_1(self, method: bytes, path: bytes) -> bool:
        """Send it, and return whether it got through to the service."""
        data = b"%s %s HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n" % (method, path)
        return any(answer.status == 200 for answer in raw_answers(self.port, data))

    def over_http_2(self, method: bytes, path: bytes) -> bool:
        """Send it, and return whether it got through to the service."""
        own = h2.config.H2Configuration(
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        client = h2.connection.H2Connection(own)
        client.initiate_connection()
        names = (b":method", b":scheme", b":authority", b":path")
        values = (method, b"https", b"hello.test", path)
        client.send_headers(1, list(zip(names, values, strict=True)), end_stream=True)
        with handshake(self.https_port, "hello.test") as connection, contextlib.suppress(OSError):
            connection.sendall(client.data_to_send())
            while data := connection.recv(65536):
                for event in client.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        return dict(event.headers or ())[b":status"] == b"200"
                    if isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                        return False
        return False


@pytest.fixture(scope="module")
def hostile(haproxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    gateway = Gateway(LocalPlace("local", tmp_path_factory.mktemp("gateway") / "gateway"))
    https_port = free_port()
    gateway.ensure_running(GatewayState(name="local", base_port=free_port(), https_port=https_port))
    gateway.install_certificate("hello.test", certificate("hello.test"))
    app = Application("hello-1-0")
    serve(gateway, app, hosts=["hello.test"], access_log=True)
    yield Hostile(gateway, https_port)
    gateway.destroy()
    app.stop()


def last_path(hostile: Hostile, method: bytes, path: bytes, *, http_2: bool) -> tuple[str, str] | None:
    """Send a request; return the method and path that are written of it, None if it did not get through."""
    send = hostile.over_http_2 if http_2 else hostile.over_http_1
    got_through = send(method, path)
    hostile.sent += got_through
    wait_until(lambda: answered(hostile) == hostile.sent, 10, "what got through is written, and nothing else")
    parsed = [json.loads(line) for line in written(hostile.gateway) if line.startswith("{")]
    assert {it["service"] for it in parsed} <= {"hello"}
    last = [it for it in parsed if it["status"] == 200][-1:]
    return (last[0]["method"], last[0]["path"]) if got_through else None


def answered(hostile: Hostile) -> int:
    return sum(it["status"] == 200 for it in requests_of(hostile.gateway))


@pytest.mark.parametrize(
    ("path", "http_2", "expected"),
    [
        (b'/"\\', False, '/"\\'),
        (b'/"\\', True, '/"\\'),
        (b"/%22%0a%ff", False, "/%22%0a%ff"),
        (b'/","service":"other","x":"', True, '/","service":"other","x":"'),
        ("/é\u2028".encode(), True, "/é\u2028"),
        (b"/\xff\xfea", True, "/a"),
        (b"/" + b'"' * 4000, False, "/" + '"' * (KEPT - 1)),
        (b"/" + b"\xc3\xa9" * 900, True, "/" + "é" * (KEPT // 2 - 1)),
    ],
)
def test_a_path_is_written_as_it_was_sent(hostile: Hostile, path: bytes, http_2: bool, expected: str) -> None:
    assert last_path(hostile, b"GET", path, http_2=http_2) == ("GET", expected)


def test_only_so_much_of_a_method_is_written(hostile: Hostile) -> None:
    assert last_path(hostile, b"!#$%&'*+-.^_`|~" + b"X" * 100, b"/", http_2=False) == (
        "!#$%&'*+-.^_`|~" + "X" * 17,
        "/",
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.one_of(st.just(b"GET"), st.binary(min_size=1, max_size=40)),
    path=st.one_of(st.text(max_size=40).map(str.encode), st.binary(max_size=40)),
    http_2=st.booleans(),
)
def test_lines_are_json_whatever_clients_send(
    hostile: Hostile, method: bytes, path: bytes, http_2: bool
) -> None:
    last_path(hostile, method, b"/" + path, http_2=http_2)
