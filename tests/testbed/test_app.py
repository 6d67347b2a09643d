"""The application that tests deploy does what it says, run as a script."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from websockets.sync.client import connect

from tests.testbed.conftest import get, get_when_ready
from tests.testbed.images import APP


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def application(**variables: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    environment = {**os.environ, "PORT": str(port), **variables}
    pipe = subprocess.PIPE
    command = [sys.executable, str(APP)]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process, port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with application(SERVICE="tested", VERSION="3") as (_, port):
        get_when_ready("127.0.0.1", port)
        yield port


@pytest.fixture
def client(port: int) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        yield connection


def test_says_who_it_is_on_one_connection_again_and_again(client: http.client.HTTPConnection) -> None:
    answers = []
    for _ in range(3):
        client.request("GET", "/")
        answers.append(json.loads(client.getresponse().read()))
        used = client.sock
    assert answers[0] == answers[2]
    assert answers[0] | {"pid": 0} == {
        "service": "tested",
        "version": "3",
        "hostname": socket.gethostname(),
        "pid": 0,
    }
    assert client.sock is used


def test_shows_the_headers_as_they_came(client: http.client.HTTPConnection) -> None:
    client.putrequest("DELETE", "/headers?a=1", skip_host=True, skip_accept_encoding=True)
    for value in ("one", "two"):
        client.putheader("X-Twice", value)
    client.endheaders()
    assert json.loads(client.getresponse().read()) == {
        "method": "DELETE",
        "path": "/headers?a=1",
        "headers": [["X-Twice", "one"], ["X-Twice", "two"]],
    }


def test_health_is_what_it_was_told(client: http.client.HTTPConnection) -> None:
    for status in (503, 200):
        client.request("POST", f"/health?status={status}")
        client.getresponse().read()
        client.request("GET", "/health")
        response = client.getresponse()
        response.read()
        assert response.status == status


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_echo(client: http.client.HTTPConnection, size: int) -> None:
    body = os.urandom(size)
    client.request("POST", "/echo", body)
    assert client.getresponse().read() == body
    client.request("POST", "/echo", iter([body, b"more"]), encode_chunked=True)
    assert client.getresponse().read() == body + b"more"


def test_events_come_one_by_one(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/sse?seconds=0.5")
    response = client.getresponse()
    assert response.headers["Content-Type"] == "text/event-stream"
    lines, times = [], []
    while line := response.readline():
        if line.startswith(b"data"):
            lines.append(line)
            times.append(time.monotonic())
    assert len(lines) == 6
    assert times[4] - times[0] > 0.3


def test_big_and_slow(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/big?mb=3")
    assert len(client.getresponse().read()) == 3_000_000
    started = time.monotonic()
    client.request("GET", "/slow?seconds=0.2")
    assert json.loads(client.getresponse().read()) == {"slept": 0.2}
    assert time.monotonic() - started >= 0.2
    client.request("GET", "/nowhere")
    assert client.getresponse().status == 404


@pytest.mark.parametrize("size", [5, 1000, 100_000])
def test_websocket_echo(port: int, size: int) -> None:
    with connect(f"ws://127.0.0.1:{port}/ws", compression=None) as websocket:
        websocket.send("a" * size)
        assert websocket.recv(5) == "a" * size
        websocket.send([b"in ", b"three ", b"parts"])
        assert websocket.recv(5) == b"in three parts"
        assert websocket.ping().wait(5)


def test_sigterm_lets_requests_in_flight_finish() -> None:
    with application() as (process, port):
        get_when_ready("127.0.0.1", port)
        answers: list[object] = []
        request = threading.Thread(target=lambda: answers.append(get("127.0.0.1", port, "/slow?seconds=1")))
        with closing(socket.create_connection(("127.0.0.1", port))) as idle:
            request.start()
            get_when_ready("127.0.0.1", port)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
            idle.close()
        request.join(5)
        assert answers == [{"slept": 1.0}]
        with pytest.raises(ConnectionRefusedError):
            get("127.0.0.1", port)


def test_exits_when_asked() -> None:
    with application() as (process, port):
        get_when_ready("127.0.0.1", port)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as client:
            client.request("POST", "/exit?code=3")
            assert client.getresponse().read() == b'{"exit": 3}\n'
        assert process.wait(5) == 3


def test_broken_exits_at_once_and_says_why() -> None:
    with application(BROKEN="exit") as (process, _):
        assert process.wait(5) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "cannot start: broken on request\n"


def test_broken_never_listens_but_ends_when_told() -> None:
    with application(BROKEN="never") as (process, port):
        assert process.stdout is not None
        assert process.stdout.readline() == "never listening, on request\n"
        with pytest.raises(ConnectionRefusedError):
            get("127.0.0.1", port)
        process.terminate()
        assert process.wait(5) == 0


def test_broken_answers_500() -> None:
    with application(BROKEN="500") as (_, port):
        assert get_when_ready("127.0.0.1", port) == {"error": "broken on request"}


def test_start_delay() -> None:
    started = time.monotonic()
    with application(START_DELAY="1") as (_, port):
        get_when_ready("127.0.0.1", port)
        assert time.monotonic() - started >= 1
