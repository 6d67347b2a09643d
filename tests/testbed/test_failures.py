"""What can happen to a host: power cuts, reboots, partitions, firewalls."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.testbed.conftest import get, get_when_ready
from tests.testbed.host import Host
from tests.testbed.testbed import Testbed

pytestmark = pytest.mark.testbed

REQUEST = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"


@pytest.fixture
def connection(pair: list[Host]) -> Iterator[socket.socket]:
    """An open connection to the application on the first host, which has answered once."""
    with closing(socket.create_connection((pair[0].address, 8000), timeout=5)) as connection:
        connection.sendall(REQUEST)
        assert b"200 OK" in connection.recv(65536)
        connection.settimeout(0.5)
        yield connection


def can_connect(source: Host, address: str | None, port: int) -> bool:
    command = ["timeout", "0.7", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"]
    return source.exec(command).returncode == 0


def test_power_off_is_silent_and_final(pair: list[Host], connection: socket.socket) -> None:
    host = pair[0]
    host.power_off()
    try:
        connection.sendall(REQUEST)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
        with pytest.raises(OSError, match=r"timed out|No route to host"):
            get(host.address, timeout=0.5)
        assert not host.running
        with pytest.raises(RuntimeError, match="alpha is switched off"):
            host.exec(["true"])
    finally:
        host.start()


def test_after_a_reboot_containers_are_back_and_the_disk_is_kept(pair: list[Host]) -> None:
    host = pair[0]
    host.check(["docker", "run", "-d", "--name", "once", "testbed/app:1"])
    host.write_file("/root/kept", "kept")
    host.write_file("/tmp/lost", "lost")
    key, before = host.host_key, host.check(["cat", "/proc/1/stat"]).split()[21]
    host.reboot()
    assert get_when_ready(host.address)["service"] == "alpha"
    assert host.check(["docker", "ps", "--format", "{{.Names}}"]) == "app\n"
    assert host.read_file("/root/kept") == "kept"
    assert host.exec(["test", "-e", "/tmp/lost"]).returncode == 1
    assert (host.host_key, host.check(["cat", "/etc/hostname"])) == (key, "alpha\n")
    assert host.check(["cat", "/proc/1/stat"]).split()[21] != before
    host.check(["docker", "rm", "once"])


def test_an_open_connection_survives_a_partition(pair: list[Host], connection: socket.socket) -> None:
    host = pair[0]
    host.partition()
    try:
        connection.sendall(REQUEST)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
        with pytest.raises(TimeoutError):
            get(host.address, timeout=0.5)
        assert not can_connect(pair[1], host.internal_address, 22)
        assert host.check(["hostname"]) == "alpha\n"
    finally:
        host.heal()
    connection.settimeout(15)
    assert b"200 OK" in connection.recv(65536)
    assert get(host.address)["service"] == "alpha"


def test_nothing_but_ssh_passes_in_one_direction(pair: list[Host]) -> None:
    host, gateway = pair
    assert can_connect(gateway, host.internal_address, 8000)
    host.only_ssh_from(gateway)
    try:
        for address in (host.address, host.internal_address):
            assert can_connect(gateway, address, 22)
            assert not can_connect(gateway, address, 8000)
        assert not can_connect(host, gateway.internal_address, 22)
        assert get(host.address)["service"] == "alpha"
    finally:
        host.rejoin(gateway)
    assert can_connect(gateway, host.internal_address, 8000)
    assert can_connect(host, gateway.internal_address, 22)


def test_a_host_isolated_from_this_machine_still_reaches_its_neighbour(
    pair: list[Host], testbed: Testbed
) -> None:
    host, neighbour = pair
    host.isolate_from(testbed)
    try:
        with pytest.raises(TimeoutError):
            get(host.address, timeout=0.5)
        assert can_connect(host, neighbour.address, 22)
    finally:
        host.rejoin(testbed)
    assert get(host.address)["service"] == "alpha"


def test_isolation_outlasts_a_reboot(pair: list[Host], make_host: Callable[..., Host]) -> None:
    host = make_host("plain", docker="stopped")
    host.isolate_from(pair[1])
    host.reboot()
    assert not can_connect(pair[1], host.address, 22)
    assert can_connect(pair[0], host.address, 22)


def test_a_host_on_the_internal_network_only_is_reached_through_another(
    pair: list[Host], make_host: Callable[..., Host]
) -> None:
    host = make_host("inner", public=False, internal_network="10.78.0.0/24", docker="stopped")
    assert host.address == host.internal_address
    assert can_connect(pair[0], host.address, 22)
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on this machine's routes
        socket.create_connection((host.address, 22), timeout=0.5)
