"""Parts of paramiko, the Docker SDK and urllib3 that they promise nobody, and that hosts/ builds on.

When one of these tests fails after an update, that release has moved a part: the message names it, and the
module of ours that has to follow.
"""

from __future__ import annotations

import inspect
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from types import SimpleNamespace
from typing import Any

import docker
import paramiko
import pytest
import requests
import urllib3._version
from docker.transport.basehttpadapter import BaseHTTPAdapter
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from prefect_dstack.hosts import engine, ssh_config
from prefect_dstack.hosts.transport import Transport

VERSIONS = (
    f"paramiko {paramiko.__version__}, docker {docker.__version__}, urllib3 {urllib3._version.__version__}, "
    f"requests {requests.__version__}"
)


def moved(part: str, module: str, what_for: str) -> str:
    return f"{part} has moved ({VERSIONS}): hosts/{module} {what_for}"


@pytest.mark.parametrize(
    ("owner", "method", "parameters", "module", "what_for"),
    [
        (
            paramiko.Transport,
            "_send_user_message",
            ["self", "data"],
            "transport.py",
            "adds to the message that opens a channel",
        ),
        (
            paramiko.ChannelFile,
            "_read",
            ["self", "size"],
            "engine.py",
            "tells a lost connection from an end there",
        ),
        (
            urllib3.HTTPConnectionPool,
            "_new_conn",
            ["self"],
            "engine.py",
            "makes the pool's connections there",
        ),
        (
            urllib3.HTTPConnectionPool,
            "_get_conn",
            ["self", "timeout"],
            "engine.py",
            "looks there whether an idle connection still stands",
        ),
        (
            BaseHTTPAdapter,
            "get_connection_with_tls_context",
            ["self", "request", "verify", "proxies", "cert"],
            "engine.py",
            "relies on its calling get_connection",
        ),
    ],
)
def test_methods_are_where_they_were(
    owner: type, method: str, parameters: list[str], module: str, what_for: str
) -> None:
    message = moved(f"{owner.__module__}.{owner.__name__}.{method}", module, what_for)
    assert hasattr(owner, method), message
    assert list(inspect.signature(getattr(owner, method)).parameters) == parameters, message


@pytest.fixture
def pair() -> Iterator[tuple[Transport, paramiko.Transport]]:
    """A client of ours and a server, logged in to each other over a pair of sockets."""

    class Server(paramiko.ServerInterface):
        def check_auth_none(self, username: str) -> int:
            return AUTH_SUCCESSFUL

        def check_channel_request(self, kind: str, chanid: int) -> int:
            return OPEN_SUCCEEDED

        def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
            return OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
            return True

    ours, theirs = socket.socketpair()
    client, server = Transport(ours), paramiko.Transport(theirs)
    try:
        server.add_server_key(paramiko.RSAKey.generate(2048))
        server.start_server(event=threading.Event(), server=Server())
        client.start_client(timeout=10)
        client.auth_none("me")
        yield client, server
    finally:
        client.close()
        server.close()


Pair = tuple[Transport, paramiko.Transport]


class TestParamiko:
    def test_the_message_that_opens_a_channel_passes_where_we_add_to_it(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        messages = []

        def catch(transport: paramiko.Transport, data: paramiko.Message) -> None:
            messages.append(paramiko.Message(data.asbytes()))
            raise InterruptedError

        monkeypatch.setattr(paramiko.Transport, "_send_user_message", catch)
        with pytest.raises(InterruptedError):
            pair[0].open_unix_socket("/run/docker.sock", 1.0)
        message = moved("what open_channel sends", "transport.py", "adds the path of a socket to it")
        (sent,) = messages
        assert sent.get_byte() == bytes([90]), message  # SSH_MSG_CHANNEL_OPEN
        assert sent.get_text() == "direct-streamlocal@openssh.com", message
        for _ in ("the channel's number", "its window", "its largest packet"):
            sent.get_int()
        # As PROTOCOL of OpenSSH has it, section 2.4, and nothing after it.
        assert (sent.get_text(), sent.get_text(), sent.get_int()) == ("/run/docker.sock", "", 0), message
        assert sent.get_remainder() == b"", message

    def test_other_channels_are_opened_as_ever(self, pair: Pair) -> None:
        pair[0].open_session(timeout=5).close()
        pair[0].open_channel("direct-tcpip", ("h", 1), ("127.0.0.1", 0), timeout=5).close()

    def test_a_channel_says_how_it_is(self, pair: Pair) -> None:
        client, server = pair
        channel = client.open_session(timeout=5)
        peer = server.accept(5)
        assert peer is not None
        message = moved("a state of Channel", "ssh.py, commands.py and engine.py", "ask for it")
        for name in ("closed", "eof_received", "exit_status", "status_event"):
            assert hasattr(channel, name), f"{message}: {name}"
        assert (channel.closed, bool(channel.eof_received), channel.exit_status) == (False, False, -1), (
            message
        )
        channel.exec_command("true")
        peer.send_exit_status(7)
        peer.shutdown_write()
        assert channel.status_event.wait(5), message
        assert channel.recv(1) == b""
        assert not channel.closed, message
        assert channel.eof_received, message
        assert channel.exit_status == 7, message

    def test_a_lost_connection_closes_channels_without_an_end(self, pair: Pair) -> None:
        client, server = pair
        channel = client.open_session(timeout=5)
        server.close()
        assert channel.recv(1) == b""
        message = moved("the end of a transport", "transport.py", "tells it from a channel's own by this")
        assert channel.closed, message
        assert not channel.eof_received, message
        client.join(5)
        assert not client.is_active(), message

    def test_a_transport_closes_its_socket_when_the_peer_is_gone(self, pair: Pair) -> None:
        client, server = pair
        server.close()
        client.join(5)
        message = moved("Transport.sock", "transport.py", "relies on its being closed, to end a ProxyCommand")
        assert client.sock.fileno() == -1, message

    def test_the_file_of_a_channel_can_be_replaced_and_reads_through_us(self, pair: Pair) -> None:
        client, server = pair
        channel = client.open_session(timeout=5)
        peer = server.accept(5)
        assert peer is not None
        vars(channel)["makefile"] = lambda mode="rb", buffering=-1: engine._Answer(channel, mode, buffering)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        answer = HTTPResponse(channel)  # type: ignore[arg-type]
        answer.begin()
        message = moved("ChannelFile", "engine.py", "reads the engine's answers with it")
        assert answer.read() == b"hi", message
        # What the Docker SDK takes the socket of an attached stream from.
        attached = HTTPResponse(channel)  # type: ignore[arg-type]
        assert getattr(attached.fp, "channel", None) is channel, message
        server.close()
        with pytest.raises(engine._LostError):
            channel.makefile("rb").read()

    def test_keywords_that_it_does_not_know_are_kept_in_order_and_as_they_are(self) -> None:
        command = ':"a" %h ~ "none"'
        lines = [f"{ssh_config.COMMAND} {command}", f"{ssh_config.JUMP} b", f"{ssh_config.COMMAND} none"]
        options = paramiko.SSHConfig.from_text("\n".join(["Host x", *lines])).lookup("x")
        ours = [
            (name, value) for name, value in options.items() if name in (ssh_config.JUMP, ssh_config.COMMAND)
        ]
        assert ours == [(ssh_config.COMMAND, command), (ssh_config.JUMP, "b")], moved(
            "SSHConfig.lookup", "ssh_config.py", "looks up ProxyJump and ProxyCommand by names of its own"
        )

    def test_the_ciphers_that_we_prefer_are_there(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ciphers = Transport(ours).get_security_options().ciphers
        assert "gcm" in ciphers[0], moved("AES-GCM", "transport.py", "prefers it, for its speed")
        assert set(ciphers) == set(vars(paramiko.Transport)["_preferred_ciphers"])


class TestDocker:
    def test_the_version_may_be_set_afterwards(self) -> None:
        message = moved("APIClient._version", "engine.py", "sets it once the engine can be asked")
        client = docker.DockerClient(base_url="tcp://ssh:1", version=engine.FIRST_VERSION)
        try:
            assert vars(client.api).get("_version") == engine.FIRST_VERSION, message
            vars(client.api)["_version"] = "1.99"
            assert client.api.api_version == "1.99", message
            api: Any = client.api
            assert api._url("/x").endswith("/v1.99/x"), message
        finally:
            client.close()

    def test_the_socket_of_a_stream_is_looked_for_where_it_is(self) -> None:
        client = docker.DockerClient(base_url="tcp://ssh:1", version=engine.FIRST_VERSION)
        channel = SimpleNamespace()
        answer = SimpleNamespace(
            raw=SimpleNamespace(_fp=SimpleNamespace(fp=SimpleNamespace(channel=channel))),
            raise_for_status=lambda: None,
        )
        try:
            client.api.base_url = "http+docker://ssh"
            api: Any = client.api
            assert api._get_raw_response_socket(answer) is channel, moved(
                "APIClient._get_raw_response_socket", "engine.py", "makes it find a channel by the address"
            )
        finally:
            client.close()

    def test_requests_take_their_connection_from_our_pool(self) -> None:
        way = engine._Way("here", _never, sessions=False)
        adapter = engine._Adapter(SimpleNamespace(place="here"), way)  # type: ignore[arg-type]
        message = moved("get_connection_with_tls_context", "engine.py", "leads requests to its pool with it")
        request = requests.Request("GET", "http+docker://ssh/v1/x").prepare()
        assert adapter.get_connection_with_tls_context(request, verify=True) is adapter._pool, message
        with pytest.raises(_DialledError):
            adapter.send(request)


class TestUrllib3:
    def test_the_pool_hands_out_connections_of_ours(self) -> None:
        message = moved("HTTPConnectionPool", "engine.py", "replaces its two methods")
        pool = engine._Pool(engine._Way("here", _never, sessions=True))
        assert pool.block is True, message
        assert pool.pool is not None, message
        taken = [pool._get_conn() for _ in range(engine.MOST_SESSIONS)]
        assert {type(connection) for connection in taken} == {engine._HTTPConnection}, message
        with pytest.raises(urllib3.exceptions.EmptyPoolError):
            pool._get_conn(timeout=0.01)
        pool._put_conn(taken[0])
        assert pool._get_conn() is taken[0], message
        pool.close()
        with pytest.raises(urllib3.exceptions.ClosedPoolError):
            pool._get_conn()


class _DialledError(Exception):
    pass


def _never() -> Any:
    raise _DialledError
