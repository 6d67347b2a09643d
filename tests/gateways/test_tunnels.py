"""Tunnels between real hosts, and from this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.attachment import Attachment, direct_address
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.host import HostPlace
from prefect_dstack.gateways.host_tunnels import HostTunnels, tunnels_on
from prefect_dstack.gateways.local_tunnels import LocalTunnels
from prefect_dstack.gateways.route import Route, RouteReplica
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.gateways.tunnels import (
    Hop,
    TunnelHolder,
    TunnelTarget,
    close_tunnel,
    keys_on,
    open_tunnel,
    revoke_key,
    ssh_files,
)
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.pool import close_connections
from prefect_dstack.hosts.ssh import ChannelRefusedError
from prefect_dstack.hosts.ssh_machine import SshMachine
from tests.gateways.hosts import answers, machine, median_latency, run_app, traces
from tests.hosts.relay import RELAY
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed

STAMP = Stamp(service="hello", revision=1, replica=0)
PORT = 20081
ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)"


class TestDirectly:
    replica = Attachment("203.0.113.7", "10.0.0.7", "10.0.0.0/24")

    @pytest.mark.parametrize(
        ("gateway", "address"),
        [
            (Attachment("203.0.113.1", "10.0.0.1", "10.0.0.0/24"), "10.0.0.7"),
            (Attachment("203.0.113.1", "10.0.1.1", "10.0.1.0/24"), None),
            (Attachment("203.0.113.1"), None),
            (Attachment("203.0.113.7"), "10.0.0.7"),
        ],
    )
    def test_on_one_network_or_one_machine(self, gateway: Attachment, address: str | None) -> None:
        assert direct_address(gateway, self.replica) == address

    def test_an_address_inside_the_gateways_network_will_do(self) -> None:
        gateway = Attachment("203.0.113.1", None, "10.0.0.0/16")
        assert direct_address(gateway, Attachment("x", "10.0.5.7")) == "10.0.5.7"
        assert direct_address(gateway, Attachment("x", "10.1.5.7")) is None
        assert direct_address(Attachment("y", None, "vpc-1"), Attachment("x", "10.1.5.7")) is None

    def test_a_replica_on_the_gateways_own_machine_needs_no_private_address(self) -> None:
        assert direct_address(Attachment("h"), Attachment("h")) == "127.0.0.1"


@given(
    directory=st.text(
        st.characters(blacklist_characters='"\0', blacklist_categories=["Cc", "Cs"]), max_size=40
    ),
    address=st.ip_addresses().map(str),
    port=st.integers(1, 65535),
    jumps=st.integers(0, 2),
    command=st.none() | st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1),
)
def test_each_setting_of_ssh_is_one_line(
    directory: str, address: str, port: int, jumps: int, command: str | None
) -> None:
    hops = tuple(
        Hop(
            f"10.0.0.{number}",
            22,
            "root",
            "ssh-ed25519 AAAA",
            proxy_command=command if number == 0 else None,
        )
        for number in range(jumps)
    )
    target = TunnelTarget(
        "10.0.0.7",
        22,
        "root",
        "ssh-ed25519 AAAA",
        address,
        port,
        hops,
        proxy_command=None if jumps else command,
    )
    files = ssh_files(f"/{directory}", 20000, target)
    lines = files["config"].decode().rstrip("\n").split("\n")
    assert ("ProxyCommand " + (command or "").replace("%", "%%") in lines) == (command is not None)
    tame = ssh_files("/x", 20000, target)["config"].decode().rstrip("\n").split("\n")
    assert [line.split(" ")[0] for line in lines] == [line.split(" ")[0] for line in tame]
    assert sum(line.startswith("ProxyCommand ssh -F ") for line in lines) == jumps
    assert sum(line.startswith("LocalForward ") for line in lines) == 1
    assert files["known_hosts"].count(b"\n") == jumps + 1


@pytest.fixture(scope="module")
def hosts(testbed: Testbed) -> Iterator[tuple[Host, Host]]:
    edge, inner = testbed.hosts("tunnel-edge", "tunnel-inner")
    load_image(edge, "haproxy")
    load_image(inner, "app")
    run_app(inner, "127.0.0.1", PORT)
    run_app(inner, inner.address, PORT + 1)
    yield edge, inner
    close_connections()
    testbed.remove(edge, inner)


@pytest.fixture(scope="module")
def cellar(testbed: Testbed) -> Iterator[tuple[Host, Host]]:
    """A host that only another reaches, and that other."""
    network = "10.78.12.0/24"
    door = testbed.host("tunnel-door", internal_network=network)
    load_image(door, "haproxy")
    inner = testbed.host("tunnel-cellar", public=False, internal_network=network)
    load_image(inner, "app")
    run_app(inner, "127.0.0.1", PORT)
    yield door, inner
    close_connections()
    testbed.remove(door, inner)


@pytest.fixture
def clean(hosts: tuple[Host, Host]) -> Iterator[None]:
    before = [traces(host) for host in hosts]
    yield
    assert [traces(host) for host in hosts] == before


@pytest.fixture
def gateway(clean: None, hosts: tuple[Host, Host]) -> Iterator[Gateway]:
    gateway = Gateway(HostPlace(machine(hosts[0]), "edge"))
    gateway.ensure_running(GatewayState(name="edge", bind_address="*", base_port=80))
    yield gateway
    gateway.destroy()


@pytest.fixture
def holder(gateway: Gateway, hosts: tuple[Host, Host]) -> Iterator[HostTunnels]:
    holder = HostTunnels(machine(hosts[0]), "edge")
    yield holder
    close_tunnel(holder, machine(hosts[1]), STAMP)


@pytest.fixture
def url(gateway: Gateway, holder: HostTunnels, hosts: tuple[Host, Host]) -> str:
    """A service behind the gateway, whose replica is reached through a tunnel."""
    port = open_tunnel(holder, machine(hosts[1]), STAMP, "127.0.0.1", PORT)
    publish(gateway, "hello", 80, "127.0.0.1", port)
    url = f"http://{hosts[0].address}/"
    wait_until(answers(url), 20, "the tunnel is open")
    return url


class TestOnHosts:
    pytestmark = pytest.mark.testbed

    def test_it_leads_to_the_replica_alone(
        self, hosts: tuple[Host, Host], url: str, holder: HostTunnels
    ) -> None:
        edge, inner = hosts
        assert [held.stamp for held in holder.held()] == [STAMP]
        assert [gateway for gateway, _ in tunnels_on(machine(edge))] == ["edge"]
        assert keys_on(machine(inner)) == [("edge", STAMP.name)]
        # With the key in hand, nothing else can be had of the replica's host.
        key = edge.read_file(f"/var/lib/prefect-dstack/tunnels/edge/{STAMP.name}/key")
        thief = SshMachine(
            SshAccess(hostname=inner.address, user="root", ssh_key=key, host_key=inner.fingerprint)
        )
        assert thief.run(["cat", "/etc/shadow"]).stdout == b""
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: thief.connection.open_tcp("127.0.0.1", 22),
            lambda: thief.connection.open_tcp(inner.address, PORT),
            lambda: thief.connection.open_unix("/var/run/docker.sock"),
        )
        for steal in attempts:
            with pytest.raises(ChannelRefusedError):
                steal()
        thief.connection.open_tcp("127.0.0.1", PORT).close()

    def test_the_private_key_stays_on_the_gateway(self, hosts: tuple[Host, Host], url: str) -> None:
        edge, inner = hosts
        found = edge.check(["stat", "-c", "%U %a", f"/var/lib/prefect-dstack/tunnels/edge/{STAMP.name}/key"])
        assert found == "root 600\n"
        assert not inner.exec(["grep", "-rl", "PRIVATE KEY", "/root"]).stdout

    def test_opened_twice_it_is_there_once(
        self, hosts: tuple[Host, Host], url: str, holder: HostTunnels
    ) -> None:
        ports = {open_tunnel(holder, machine(hosts[1]), STAMP, "127.0.0.1", PORT) for _ in range(2)}
        assert ports == {held.port for held in holder.held()}
        assert keys_on(machine(hosts[1])) == [("edge", STAMP.name)]

    def test_it_moves_when_the_replica_does(
        self, hosts: tuple[Host, Host], url: str, holder: HostTunnels
    ) -> None:
        port = open_tunnel(holder, machine(hosts[1]), STAMP, hosts[1].address, PORT + 1)
        assert [held.port for held in holder.held()] == [port]

    def test_it_costs_less_than_a_millisecond(
        self, hosts: tuple[Host, Host], url: str, gateway: Gateway
    ) -> None:
        publish(gateway, "directly", 81, hosts[1].address, PORT + 1)
        directly = f"http://{hosts[0].address}:81/"
        wait_until(answers(directly), 10, "the direct way answers")
        differences = [median_latency(url) - median_latency(directly) for _ in range(3)]
        assert min(differences) < 1.0, differences

    def test_nothing_but_ssh_is_needed(self, hosts: tuple[Host, Host], url: str) -> None:
        edge, inner = hosts
        inner.only_ssh_from(edge)
        try:
            wait_until(answers(url), 20, "it answers with SSH alone")
        finally:
            inner.rejoin(edge)

    @pytest.mark.parametrize("which", [0, 1], ids=["gateway", "replica"])
    def test_a_reboot_of_either_side_heals(self, hosts: tuple[Host, Host], url: str, which: int) -> None:
        hosts[which].reboot()
        wait_until(answers(url), 60, "it answers after the reboot")

    def test_a_partition_heals(self, hosts: tuple[Host, Host], url: str) -> None:
        hosts[1].isolate_from(hosts[0])
        wait_until(lambda: not answers(url)(), 30, "it has noticed")
        hosts[1].rejoin(hosts[0])
        wait_until(answers(url), 60, "it answers after the partition")

    def test_a_host_with_another_key_is_not_believed(
        self, hosts: tuple[Host, Host], url: str, holder: HostTunnels
    ) -> None:
        inner = hosts[1]
        kept = inner.read_file("/etc/ssh/ssh_host_ed25519_key")
        inner.rotate_host_key()
        try:
            inner.exec(["pkill", "-f", "sshd: root"])
            wait_until(lambda: "HOST IDENTIFICATION HAS CHANGED" in holder.log(STAMP), 20, "it is refused")
            assert not answers(url)()
        finally:
            inner.set_host_key(kept)
            close_connections()
        wait_until(answers(url), 20, "it answers again")

    def test_it_can_be_closed_when_the_replicas_host_is_off(
        self, hosts: tuple[Host, Host], url: str, holder: HostTunnels
    ) -> None:
        close_tunnel(holder, None, STAMP)
        assert holder.held() == []
        assert keys_on(machine(hosts[1])) == [("edge", STAMP.name)]
        revoke_key(machine(hosts[1]), "edge", STAMP.name)
        assert keys_on(machine(hosts[1])) == []

    def test_other_keys_are_left_as_they_are(self, hosts: tuple[Host, Host], holder: HostTunnels) -> None:
        inner, path = hosts[1], "/root/.ssh/authorized_keys"
        kept = inner.read_file(path)
        inner.write_file(path, f"# mine\n\n{kept}", mode=0o640)
        try:
            open_tunnel(holder, machine(inner), STAMP, "127.0.0.1", PORT)
            close_tunnel(holder, machine(inner), STAMP)
            assert inner.read_file(path) == f"# mine\n\n{kept}"
            assert inner.check(["stat", "-c", "%a", path]) == "640\n"
        finally:
            inner.write_file(path, kept, mode=0o600)

    @pytest.mark.parametrize("gateway_on", ["this machine", "another host", "the jump host"])
    def test_a_host_behind_another_is_reached_through_it(
        self, hosts: tuple[Host, Host], cellar: tuple[Host, Host], tmp_path: Path, gateway_on: str
    ) -> None:
        door, inner = cellar
        behind = machine(inner, jump=machine(door).access)
        before = [traces(host) for host in (hosts[0], door)]
        holders: dict[str, Callable[[], TunnelHolder]] = {
            "this machine": lambda: LocalTunnels(tmp_path / "it's here"),
            "another host": lambda: HostTunnels(machine(hosts[0]), "edge"),
            "the jump host": lambda: HostTunnels(machine(door), "edge"),
        }
        holder = holders[gateway_on]()
        port = open_tunnel(holder, behind, STAMP, "127.0.0.1", PORT)
        assert open_tunnel(holder, behind, STAMP, "127.0.0.1", PORT) == port

        def answer() -> bool:
            if holder.connection is None:
                return answers(f"http://127.0.0.1:{port}/")()
            command = ["python3", "-c", ASK, f"http://127.0.0.1:{port}/"]
            return holder.connection.run(command).exit_code == 0

        try:
            wait_until(answer, 30, "the tunnel is open")
            assert keys_on(behind) == [("edge" if holder.connection else "local", STAMP.name)]
            assert bool(keys_on(machine(door))) == (gateway_on != "the jump host")
            inner.reboot()
            wait_until(answer, 60, "it answers after the reboot")
        finally:
            close_tunnel(holder, behind, STAMP)
        assert keys_on(behind) == keys_on(machine(door)) == []
        assert [traces(host) for host in (hosts[0], door)] == before

    def test_a_key_opens_nothing_on_a_jump_host_but_the_way_on(
        self, cellar: tuple[Host, Host], tmp_path: Path
    ) -> None:
        door, inner = cellar
        holder = LocalTunnels(tmp_path / "tunnels")
        behind = machine(inner, jump=machine(door).access)
        open_tunnel(holder, behind, STAMP, "127.0.0.1", PORT)
        try:
            thief = SshMachine(
                SshAccess(
                    hostname=door.address,
                    user="root",
                    identity_file=tmp_path / "tunnels" / STAMP.name / "key",
                    host_key=door.fingerprint,
                )
            )
            assert thief.run(["cat", "/etc/shadow"]).stdout == b""
            with pytest.raises(ChannelRefusedError):
                thief.connection.open_tcp("127.0.0.1", 22)
            thief.connection.open_tcp(inner.address, 22).close()
        finally:
            close_tunnel(holder, behind, STAMP)

    def test_from_this_machine_through_a_command(
        self,
        clean: None,
        hosts: tuple[Host, Host],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        inner = hosts[1]
        behind = behind_command(inner, tmp_path, monkeypatch)
        holder: TunnelHolder = LocalTunnels(tmp_path / "it's 100% here")
        port = open_tunnel(holder, behind, STAMP, "127.0.0.1", PORT)
        try:
            assert open_tunnel(holder, behind, STAMP, "127.0.0.1", PORT) == port
            url = f"http://127.0.0.1:{port}/"
            wait_until(answers(url), 20, "the tunnel is open")
            inner.reboot()
            wait_until(answers(url), 30, "it answers after the reboot")
            assert relays() == ["for-the-tunnel"]
        finally:
            close_tunnel(holder, behind, STAMP)
        close_connections()
        assert relays() == []

    def test_a_gateway_elsewhere_cannot_use_a_command_of_this_machine(
        self,
        clean: None,
        hosts: tuple[Host, Host],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        behind = behind_command(hosts[0], tmp_path, monkeypatch)
        with pytest.raises(
            GatewayError, match=r"'edge'.*no way to i-0abc.*ProxyCommand.*proxy_jump"
        ) as error:
            open_tunnel(HostTunnels(machine(hosts[1]), "edge"), behind, STAMP, "127.0.0.1", PORT)
        assert "\n" not in str(error.value)
        # What is reached through the gateway's own host needs no command.
        inside = SshMachine(
            SshAccess(
                hostname="127.0.0.1",
                user="root",
                identity_file=hosts[0].identity_file,
                host_key=hosts[0].fingerprint,
                proxy_jump=SshAccess(hostname="i-0abc"),
            )
        )
        holder = HostTunnels(behind, "edge")
        try:
            open_tunnel(holder, inside, STAMP, "127.0.0.1", PORT)
        finally:
            close_tunnel(holder, inside, STAMP)

    def test_from_this_machine(self, clean: None, hosts: tuple[Host, Host], tmp_path: Path) -> None:
        directory = tmp_path / "with space"
        holder: TunnelHolder = LocalTunnels(directory)
        inner = hosts[1]
        port = open_tunnel(holder, machine(inner), STAMP, "127.0.0.1", PORT)
        try:
            assert open_tunnel(holder, machine(inner), STAMP, "127.0.0.1", PORT) == port
            url = f"http://127.0.0.1:{port}/"
            wait_until(answers(url), 20, "the tunnel is open")
            inner.reboot()
            wait_until(answers(url), 30, "it answers after the reboot")
            assert [held.port for held in holder.held()] == [port]
        finally:
            close_tunnel(holder, machine(inner), STAMP)
        assert list(directory.iterdir()) == []
        assert (
            subprocess.run(["pgrep", "-f", str(directory)], check=False, capture_output=True).returncode == 1
        )


def behind_command(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SshMachine:
    """Reach a host through a ProxyCommand of this machine's, which needs something of the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PROFILE_OF_MINE", "for-the-tunnel")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(
        f"Host i-0abc\n  HostName {host.address}\n  User root\n  IdentityFile {host.identity_file}\n"
        f"  ProxyCommand {RELAY} %h %p ${{PROFILE_OF_MINE:?}}\n"
    )
    (tmp_path / ".ssh/known_hosts").write_text(host.known_hosts_line)
    return SshMachine(SshAccess(hostname="i-0abc"))


def relays() -> list[str]:
    """The last arguments of the commands that hold a tunnel, or a connection of another process."""
    ours = {child.pid for child in psutil.Process().children()}
    found = [process.info for process in psutil.process_iter(["pid", "cmdline"])]
    return [
        it["cmdline"][-1]
        for it in found
        if it["pid"] not in ours and "relay.py" in " ".join(it["cmdline"] or ())
    ]


def publish(gateway: Gateway, service: str, port: int, address: str, replica_port: int) -> None:
    replica = RouteReplica(name="a", address=address, port=replica_port)
    gateway.change(lambda state: state.with_route(Route(service=service, port=port, replicas={"a": replica})))
