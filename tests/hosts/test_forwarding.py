"""Local ports that lead to a machine's: this one's, and a real host's."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dstack.configurations import PortMapping
from prefect_dstack.errors import ConfigurationError, ConflictError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.forwarding import Forwarder
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.hosts.pool import close_connections
from prefect_dstack.hosts.ports import free_port, port_is_free
from prefect_dstack.hosts.ssh_machine import SshMachine
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.testbed import Testbed

Serve = Callable[[socket.socket], None]


class Server:
    """Serves each connection in a thread, at an address that the machine reaches."""

    def __init__(self, address: str, serve: Serve) -> None:
        self._serve = serve
        self.errors: list[OSError] = []
        self.served = threading.Semaphore(0)
        self._listener = socket.create_server((address, 0), backlog=256)
        self.address, self.port = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                peer.settimeout(20)
                threading.Thread(target=self._run, args=(peer,), daemon=True).start()

    def _run(self, peer: socket.socket) -> None:
        try:
            with peer:
                self._serve(peer)
        except OSError as error:
            self.errors.append(error)
        finally:
            self.served.release()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def host(testbed: Testbed) -> Iterator[Host]:
    host = testbed.host("forwarded", docker="absent")
    yield host
    testbed.remove(host)


@pytest.fixture(params=["this machine", pytest.param("a host", marks=pytest.mark.testbed)])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Machine, str]]:
    """A machine, and this machine's address as that one sees it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if request.param == "this machine":
        yield LocalMachine(), "127.0.0.1"
        return
    host: Host = request.getfixturevalue("host")
    testbed: Testbed = request.getfixturevalue("testbed")
    yield reach(host), testbed.address
    close_connections()


def reach(host: Host) -> SshMachine:
    return SshMachine(
        SshAccess(
            hostname=host.address, user="root", identity_file=host.identity_file, host_key=host.host_key
        ),
        name=host.name,
    )


@pytest.fixture
def lead(place: tuple[Machine, str]) -> Iterator[Callable[[Serve], tuple[int, Server]]]:
    """Starts a server, and leads a local port to it."""
    machine, address = place
    with contextlib.ExitStack() as stack:

        def start(serve: Serve) -> tuple[int, Server]:
            server = Server(address, serve)
            stack.callback(server.close)
            forwarder = Forwarder(
                machine, mappings(f"*:{server.port}"), target=lambda port: (server.address, port)
            )
            stack.callback(forwarder.close)
            return forwarder.ports[0].local_port, server

        yield start


def mappings(*ports: int | str) -> list[PortMapping]:
    return [PortMapping.model_validate(port) for port in ports]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def read_all(peer: socket.socket) -> bytes:
    data = bytearray()
    while chunk := peer.recv(65536):
        data += chunk
    return bytes(data)


def send_all(peer: socket.socket, data: bytes) -> threading.Thread:
    """Send in a thread, and then the end."""

    def send() -> None:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    return sending


def echo(peer: socket.socket) -> None:
    while data := peer.recv(65536):
        peer.sendall(data)


class TestStreams:
    def test_an_answer_may_follow_the_clients_end(self, lead: Callable[[Serve], tuple[int, Server]]) -> None:
        port, _ = lead(lambda peer: peer.sendall(read_all(peer)[::-1]))
        data = os.urandom(5_000_000)
        with connect(port) as client:
            sending = send_all(client, data)
            assert read_all(client) == data[::-1]
            sending.join()

    def test_a_client_may_go_on_after_the_servers_end(
        self, lead: Callable[[Serve], tuple[int, Server]]
    ) -> None:
        received = []

        def serve(peer: socket.socket) -> None:
            peer.sendall(b"that was all")
            peer.shutdown(socket.SHUT_WR)
            received.append(read_all(peer))

        port, server = lead(serve)
        data = os.urandom(3_000_000)
        with connect(port) as client:
            assert read_all(client) == b"that was all"
            send_all(client, data).join()
            assert server.served.acquire(timeout=15)
        assert received == [data]

    def test_both_directions_at_once(self, lead: Callable[[Serve], tuple[int, Server]]) -> None:
        port, _ = lead(echo)
        data = os.urandom(8_000_000)
        with connect(port) as client:
            sending = send_all(client, data)
            assert read_all(client) == data
            sending.join()

    def test_many_connections_at_once(self, lead: Callable[[Serve], tuple[int, Server]]) -> None:
        port, _ = lead(echo)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(port)) for _ in range(200)]
            for number, client in enumerate(clients):
                client.sendall(f"{number:08}".encode() * 100)
            for number, client in enumerate(clients):
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == f"{number:08}".encode() * 100

    def test_a_client_that_does_not_read_holds_up_nobody(
        self, lead: Callable[[Serve], tuple[int, Server]]
    ) -> None:
        data = os.urandom(30_000_000)

        def serve(peer: socket.socket) -> None:
            if peer.recv(1) == b"a":
                peer.sendall(data)
            else:
                peer.sendall(b"at once")

        port, _ = lead(serve)
        with connect(port) as slow:
            slow.sendall(b"a")
            assert len(slow.recv(1)) == 1
            for _ in range(5):
                with connect(port) as quick:
                    quick.sendall(b"b")
                    assert read_all(quick) == b"at once"
            assert len(read_all(slow)) == len(data) - 1

    def test_a_client_that_is_gone_ends_the_servers_connection(
        self, lead: Callable[[Serve], tuple[int, Server]]
    ) -> None:
        def serve(peer: socket.socket) -> None:
            while True:
                peer.sendall(b"x" * 65536)

        port, server = lead(serve)
        client = connect(port)
        assert client.recv(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert server.served.acquire(timeout=15)
        assert isinstance(server.errors[0], ConnectionError)

    def test_no_thread_or_connection_is_left(self, lead: Callable[[Serve], tuple[int, Server]]) -> None:
        port, server = lead(echo)
        before = threading.active_count()
        for _ in range(20):
            with connect(port) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        for _ in range(20):
            assert server.served.acquire(timeout=15)
        wait_until(lambda: threading.active_count() <= before, 10, "the threads have ended")


class TestEnd:
    def test_it_cuts_what_is_open_and_frees_the_port(self, place: tuple[Machine, str]) -> None:
        machine, address = place
        server = Server(address, echo)
        try:
            forwarder = Forwarder(machine, mappings(f"*:{server.port}"), target=lambda port: (address, port))
            port = forwarder.ports[0].local_port
            clients = [connect(port) for _ in range(10)]
            for client in clients:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            forwarder.close()
            assert [client.recv(1) for client in clients] == [b""] * 10
            for client in clients:
                client.close()
            for _ in clients:
                assert server.served.acquire(timeout=15)
            assert port_is_free(port)
            forwarder.close()
        finally:
            server.close()

    def test_a_client_that_does_not_read_does_not_hold_it_up(self, place: tuple[Machine, str]) -> None:
        machine, address = place
        server = Server(address, lambda peer: peer.sendall(bytes(50_000_000)))
        try:
            with Forwarder(
                machine, mappings(f"*:{server.port}"), target=lambda _: (address, server.port)
            ) as it:
                client = connect(it.ports[0].local_port)
                assert client.recv(1)
            client.close()
            assert server.served.acquire(timeout=15)
        finally:
            server.close()


class TestNobody:
    def test_a_port_behind_which_nobody_listens_resets_and_recovers(self, place: tuple[Machine, str]) -> None:
        machine, address = place
        targets = [(address, free_port(address))]
        with Forwarder(machine, mappings("*:8000"), target=lambda port: targets[-1]) as forwarder:
            port = forwarder.ports[0].local_port
            with connect(port) as client, pytest.raises(ConnectionResetError):
                client.recv(1)
            server = Server(address, lambda peer: peer.sendall(b"here"))
            targets.append((server.address, server.port))
            with connect(port) as client:
                assert read_all(client) == b"here"
            server.close()

    @pytest.mark.testbed
    def test_what_a_lost_connection_cut_does_not_look_complete(
        self, host: Host, testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        machine = reach(host)

        def serve(peer: socket.socket) -> None:
            peer.sendall(b"begun")
            peer.recv(1)

        server = Server(testbed.address, serve)
        try:
            with Forwarder(machine, mappings("*:1"), target=lambda _: (server.address, server.port)) as it:
                port = it.ports[0].local_port
                with connect(port) as client:
                    assert client.recv(5) == b"begun"
                    host.exec(["pkill", "-f", "sshd: root"])
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                with connect(port) as client:
                    assert client.recv(5) == b"begun"
        finally:
            server.close()
            close_connections()

    @pytest.mark.testbed
    def test_new_keys_of_the_connection_are_not_noticed(
        self, host: Host, testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        machine = reach(host)
        server = Server(testbed.address, echo)
        data = os.urandom(20_000_000)
        try:
            with (
                Forwarder(machine, mappings("*:1"), target=lambda _: (server.address, server.port)) as it,
                connect(it.ports[0].local_port) as client,
                ThreadPoolExecutor(1) as pool,
            ):
                reading = pool.submit(read_all, client)
                sending = send_all(client, data)
                link = machine.connection.connect()
                assert "gcm" in vars(link)["remote_cipher"]
                while sending.is_alive():
                    link.renegotiate_keys()
                assert reading.result() == data
        finally:
            server.close()
            close_connections()


class TestPorts:
    def test_they_are_what_was_asked_for(self) -> None:
        same, other = free_port(), free_port()
        with Forwarder(LocalMachine(), mappings(same, f"{other}:9", "*:9")) as forwarder:
            first, second, third = forwarder.ports
            assert (first.local_port, first.container_port) == (same, same)
            assert (second.local_port, second.container_port) == (other, 9)
            assert third.local_port not in (0, same, other)
            for port in forwarder.ports:
                # Nothing answers behind them, so the connection may be reset as soon as it is accepted.
                with contextlib.suppress(ConnectionResetError):
                    connect(port.local_port).close()

    def test_others_do_not_get_in(self) -> None:
        with Forwarder(LocalMachine(), mappings("*:9")) as forwarder:
            assert port_is_free(forwarder.ports[0].local_port, "127.0.0.2")

    def test_one_that_is_taken_is_named_and_the_others_are_let_go(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            free, number = free_port(), taken.getsockname()[1]
            with pytest.raises(
                ConflictError, match=rf"port {number} .*taken: write `OTHER:8000`, or `\*:8000`"
            ):
                Forwarder(LocalMachine(), mappings(free, f"{number}:8000"))
            assert port_is_free(free)

    def test_one_that_is_asked_for_twice_is_refused_before_anything(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object, **__: object) -> socket.socket:
            raise AssertionError

        monkeypatch.setattr(socket, "create_server", never)
        with pytest.raises(ConflictError, match=r"port 8000 .*twice"):
            Forwarder(LocalMachine(), mappings(8000, "*:9000", "8000:9000"))

    def test_one_that_leads_twice_is_fine(self) -> None:
        with Forwarder(LocalMachine(), mappings("*:9", "*:9")) as forwarder:
            assert len({port.local_port for port in forwarder.ports}) == 2

    def test_one_for_root_alone_is_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> socket.socket:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket, "create_server", refuse)
        with pytest.raises(ConfigurationError, match=r"port 80 .*root only: write `OTHER:80`"):
            Forwarder(LocalMachine(), mappings(80))
