"""What the client sees is what was answered."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.hosts.ports import free_port
from tests.gateways.application import Application, raw
from tests.gateways.conftest import serve
from tests.gateways.test_https import certificate, get
from tests.gateways.world import World

pytestmark = pytest.mark.integration


def test_an_answer_passes_as_it_is(world: World) -> None:
    name, application = world.service()
    application.headers = (
        "Server: mine/1.0\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nSet-Cookie: a=1; Path=/\r\n"
        "Set-Cookie: b=2, c=3\r\nLocation: /a%20b?x=%7e\r\nVary: Accept-Encoding\r\nRetry-After: 120\r\n"
        'X-Empty:\r\nETag: "x"\r\nContent-Encoding: gzip\r\nAccess-Control-Allow-Origin: https://a.test\r\n'
        "X-Forwarded-For: kept\r\nStrict-Transport-Security: max-age=1\r\nWWW-Authenticate: Basic\r\n"
    )
    for status in (200, 201, 404, 405, 429, 500, 502, 503):
        received = exchange(
            world.port,
            f"GET /status?code={status} HTTP/1.1\r\nHost: {name}.test\r\nConnection: close\r\n\r\n",
        )
        head, _, body = received.partition("\r\n\r\n")
        lines = head.split("\r\n")
        assert lines[0] == f"HTTP/1.1 {status} Status"
        own = [f"content-length: {len(name)}", f"x-replica: {name}"]
        sent = [lowered(line) for line in application.headers.rstrip("\r\n").split("\r\n")]
        assert lines[1:] == [*own, *sent, "connection: close"]
        assert body == name


def test_the_answer_to_head_keeps_its_length(world: World) -> None:
    name, _ = world.service()
    received = exchange(world.port, f"HEAD / HTTP/1.1\r\nHost: {name}.test\r\nConnection: close\r\n\r\n")
    assert f"content-length: {len(name)}" in received
    assert received.endswith("\r\n\r\n")


def lowered(line: str) -> str:
    name, _, value = line.partition(":")
    return f"{name.lower()}: {value.strip()}"


def exchange(port: int, data: str) -> str:
    """Send text, and return all that comes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(data.encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


class Scripted:
    """An application that says what it is told to, once it has read what it waits for."""

    def __init__(self, *steps: tuple[bytes, bytes]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.steps = steps

    def run(self) -> bytes:
        connection, _ = self.listener.accept()
        connection.settimeout(10)
        received = b""
        with self.listener, connection:
            for awaited, answer in self.steps:
                while awaited not in received:
                    received += connection.recv(65536)
                connection.sendall(answer)
        return received


@pytest.fixture
def scripted(world: World) -> Callable[[Scripted], str]:
    """Publishes a scripted application that nobody checks, and returns its service."""

    def publish(script: Scripted) -> str:
        member = {"name": "scripted", "address": "127.0.0.1", "port": script.port, "checked": False}
        name, _ = world.service(replicas={"scripted": member})
        return name

    return publish


@pytest.mark.parametrize("length", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_client_may_wait_for_the_applications_leave_to_send_a_body(
    world: World, scripted: Callable[[Scripted], str], length: str
) -> None:
    script = Scripted(
        (b"\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"),
        (b"hello", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    )
    name = scripted(script)
    client = socket.create_connection(("127.0.0.1", world.port), 10)
    with ThreadPoolExecutor(1) as threads, client:
        seen = threads.submit(script.run)
        client.sendall(
            f"POST / HTTP/1.1\r\nHost: {name}.test\r\nExpect: 100-continue\r\n{length}\r\n\r\n".encode()
        )
        received = b""
        while b"100 Continue\r\n\r\n" not in received:
            received += client.recv(65536)
        assert b" 103 " in received
        assert b"</a>" in received
        chunked = b"5\r\nhello\r\n0\r\n\r\n"
        client.sendall(chunked if "chunked" in length else b"hello")
        while not received.endswith(b"ok"):
            received += client.recv(65536)
    assert b"expect: 100-continue" in seen.result()


def test_trailers_pass_both_ways(world: World, scripted: Callable[[Scripted], str]) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n"
        b"2\r\nok\r\n0\r\nGrpc-Status: 0\r\n\r\n"
    )
    script = Scripted((b"x-sum: 1\r\n\r\n", answer))
    name = scripted(script)
    with ThreadPoolExecutor(1) as threads:
        seen = threads.submit(script.run)
        received = exchange(
            world.port,
            f"POST / HTTP/1.1\r\nHost: {name}.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n"
            "TE: trailers\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
    assert "grpc-status: 0" in received
    assert b"trailer: X-Sum" in seen.result()
    assert b"te: trailers" in seen.result()


def test_over_https_the_applications_own_policy_stays(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    https_port = free_port()
    gateway.change(lambda state: state.model_copy(update={"https_port": https_port}))
    app = application("r0")
    serve(gateway, app, hosts=["a.test"])
    gateway.install_certificate("a.test", certificate("a.test"))
    policy = "max-age=63072000; includeSubDomains; preload"
    app.headers = f"Strict-Transport-Security: {policy}\r\n"
    answer = get(https_port, "a.test")
    assert answer.headers.get_all("strict-transport-security") == [
        "max-age=63072000; includeSubDomains; preload"
    ]


def test_what_is_no_http_is_answered_in_json_where_haproxy_can(world: World, haproxy: str) -> None:
    """HAProxy 2.8 answers a few such requests from a page of its own that nothing replaces."""
    configuration = world.gateway.place.read("haproxy.cfg")
    assert configuration is not None
    for status in (400, 408, 500):
        assert f"errorfile {status} errors/{status}.http\n".encode() in configuration
        file = world.gateway.place.read(f"errors/{status}.http")
        assert file is not None
        head, _, body = file.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert f"Content-Length: {len(body)}".encode() in head
    assert raw(world.port, b"nonsense\r\n\r\n").status == 400
