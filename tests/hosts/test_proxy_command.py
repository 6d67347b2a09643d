"""Hosts behind a command, as AWS Session Manager, IAP, Teleport or cloudflared put one before them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from prefect_dstack.errors import HostUnreachableError
from prefect_dstack.hosts import transport
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.pool import close_connections, connections
from prefect_dstack.hosts.proxy_command import ProxySocket
from prefect_dstack.hosts.ssh_machine import SshMachine
from prefect_dstack.hosts.transport import NoAnswerError
from tests.hosts.relay import RELAY
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.testbed import Testbed


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir(mode=0o700)
    yield tmp_path / ".ssh"
    close_connections()
    assert relays() == []


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def relays() -> list[int]:
    """The processes of `RELAY`; hosts of the testbed are children of this process too."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "relay.py" in " ".join(child.cmdline()) or child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_in(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), 5, f"{path.name} is written"))


class TestSocket:
    def test_it_carries_bytes_both_ways_and_their_end(self, ssh: Path) -> None:
        with ProxySocket("cat") as way:
            data = os.urandom(300_000)

            def write() -> None:
                way.sendall(data)
                way.shutdown(socket.SHUT_WR)

            writer = threading.Thread(target=write)
            writer.start()
            received = b""
            while chunk := way.recv(65536):
                received += chunk
            writer.join()
        assert received == data

    def test_the_users_shell_runs_it(
        self, ssh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shell = tmp_path / "my shell"
        shell.write_text('#!/bin/sh\necho "$1 $2"\n')
        shell.chmod(0o755)
        monkeypatch.setenv("SHELL", str(shell))
        with ProxySocket("nc $HOST") as way:
            assert way.recv(99) == b"-c exec nc $HOST\n"

    def test_no_shell_waits_for_it(self, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHELL", "/bin/sh")
        before = children()
        with ProxySocket("sleep 600"):
            wait_until(
                lambda: [psutil.Process(pid).name() for pid in children() - before] == ["sleep"],
                5,
                "there is the command alone",
            )

    @pytest.mark.parametrize(
        "command",
        [
            "cat",
            "sleep 600",
            "sh -c 'sleep 600 & sleep 600'",
            "sh -c \"trap '' TERM HUP; while :; do sleep 1; done\"",
        ],
        ids=["that ends with its input", "that does not read", "with a child", "that ignores signals"],
    )
    def test_a_command_ends_with_its_socket(self, ssh: Path, command: str) -> None:
        before = children()
        with ProxySocket(command):
            wait_until(lambda: children() > before, 5, "it runs")
        assert children() == before

    def test_closed_by_many_threads_at_once(self, ssh: Path) -> None:
        before = children()
        way = ProxySocket("sleep 600")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: way.close(), range(8)))
        assert children() == before

    def test_it_may_complain_without_end(self, ssh: Path) -> None:
        with ProxySocket("sh -c 'head -c 1000000 /dev/zero >&2; echo >&2; echo the end >&2; cat'") as way:
            way.settimeout(10)
            way.sendall(b"hello")
            assert way.recv(5) == b"hello"
            assert way.outcome() == (0, "the end")

    def test_it_ends_when_this_process_is_killed(self, ssh: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from prefect_dstack.hosts.proxy_command import ProxySocket; "
            "way = ProxySocket(f\"sh -c 'echo $$ >{sys.argv[1]}; exec cat'\"); way.recv(1)"
        )
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "pid"])
        try:
            command = pid_in(tmp_path / "pid")
            assert alive(command)
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: not alive(command), 5, "the command has ended")


class TestFailing:
    def refused(self, ssh: Path, command: str) -> HostUnreachableError:
        (ssh / "config").write_text(f"Host gpu\n  ProxyCommand {command}\n")
        with pytest.raises(HostUnreachableError) as error:
            SshMachine(SshAccess(hostname="gpu")).run(["true"])
        assert "\n" not in str(error.value)
        assert str(error.value).startswith("gpu (gpu:22): its ProxyCommand ")
        return error.value

    def test_its_exit_code_and_last_words_are_told(self, ssh: Path) -> None:
        error = self.refused(ssh, "sh -c 'echo first >&2; echo TargetNotConnected >&2; exit 254'")
        assert "ended with exit code 254: TargetNotConnected: " in str(error)
        assert "~/.ssh/config" in str(error)
        assert not isinstance(error, NoAnswerError)

    def test_a_command_that_is_not_there_is_named(self, ssh: Path) -> None:
        assert "exit code 127" in str(error := self.refused(ssh, "no-such-tunnel %h"))
        assert "no-such-tunnel: not found" in str(error)

    def test_a_shell_that_is_not_there_is_named(self, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHELL", "/no/shell")
        assert "cannot be started: /no/shell: No such file" in str(self.refused(ssh, "nc %h %p"))

    def test_its_arguments_may_be_secret(self, ssh: Path) -> None:
        assert "hunter2" not in str(self.refused(ssh, "false --token hunter2"))

    def test_one_that_hangs_is_given_up_in_time(self, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "BANNER_TIMEOUT", 1.0)
        began = time.monotonic()
        error = self.refused(ssh, "sh -c 'echo waiting for a browser >&2; exec sleep 600'")
        assert time.monotonic() - began < 60
        assert "gave no answer within 1 s: waiting for a browser: " in str(error)
        assert isinstance(error, NoAnswerError)

    def test_one_that_hangs_after_the_greeting_too(self, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "BANNER_TIMEOUT", 1.0)
        error = self.refused(ssh, "sh -c 'echo SSH-2.0-x; exec sleep 600'")
        assert "gave no answer within 1 s" in str(error)

    def test_one_that_leads_to_no_ssh_server(self, ssh: Path) -> None:
        error = self.refused(ssh, "sh -c 'while :; do echo HTTP/1.1 400 Bad Request; done'")
        assert "lost the connection" in str(error)

    def test_a_connection_that_was_never_begun_leaves_nothing(self, ssh: Path) -> None:
        # A transport that was never started does not close its socket.
        before = children()
        link = transport.Transport(ProxySocket("sleep 600"))
        assert children() > before
        transport._hang_up(link)
        assert children() == before


def test_a_silent_server_is_given_up_in_time(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BANNER_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = SshAccess(hostname="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(NoAnswerError, match=r"no greeting within 0\.5 s"):
            SshMachine(address).run(["true"])


def test_a_server_that_is_silent_after_its_greeting_is_given_up_in_time(
    ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BANNER_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def greet() -> socket.socket:
            peer, _ = server.accept()
            peer.sendall(b"SSH-2.0-x\r\n")
            return peer

        greeting = pool.submit(greet)
        address = SshAccess(hostname="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(NoAnswerError, match=r"within 0\.5 s"):
            SshMachine(address).run(["true"])
        greeting.result().close()


@pytest.fixture(scope="module")
def host(testbed: Testbed) -> Iterator[Host]:
    host = testbed.host("behind-a-command", docker="absent")
    yield host
    testbed.remove(host)


class TestHosts:
    pytestmark = pytest.mark.testbed

    def machine(self, host: Host, ssh: Path, command: str, **options: str) -> SshMachine:
        lines = [f"  {name} {value}\n" for name, value in options.items()]
        (ssh / "config").write_text(
            f"Host i-0abc\n  ProxyCommand {command}\n  User root\n  IdentityFile {host.identity_file}\n"
            + "".join(lines)
        )
        (ssh / "known_hosts").write_text(f"i-0abc {host.host_key}\n")
        return SshMachine(SshAccess(hostname="i-0abc"))

    def test_a_host_is_reached_through_it(self, host: Host, ssh: Path) -> None:
        machine = self.machine(host, ssh, f"{RELAY} {host.address} %p")
        assert machine.run(["hostname"]).stdout == b"behind-a-command\n"
        data = os.urandom(4_000_000)
        assert machine.run(["cat"], stdin=data).stdout == data
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: machine.run(["true"]).exit_code, range(16))) == {0}
        assert len(connections()) == 1

    def test_openssh_understands_the_same(self, host: Host, ssh: Path) -> None:
        self.machine(host, ssh, f"{RELAY} {host.address} %p")
        known = f"UserKnownHostsFile={ssh}/known_hosts"
        command = ["ssh", "-F", str(ssh / "config"), "-o", known, "i-0abc", "hostname"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"behind-a-command\n"

    def test_openssh_itself_may_be_the_command(self, host: Host, ssh: Path) -> None:
        known = f"-o UserKnownHostsFile={ssh}/known_hosts -o HostKeyAlias=i-0abc"
        way = f"ssh -F none {known} -i {host.identity_file} -W 127.0.0.1:%p %r@{host.address}"
        assert self.machine(host, ssh, way).run(["hostname"]).stdout == b"behind-a-command\n"

    def test_the_command_ends_with_the_connection(self, host: Host, ssh: Path) -> None:
        machine = self.machine(host, ssh, f"{RELAY} {host.address} %p")
        machine.run(["true"])
        assert len(relays()) == 1
        close_connections()
        assert relays() == []

    def test_the_connection_ends_with_the_command(self, host: Host, ssh: Path) -> None:
        machine = self.machine(host, ssh, f"{RELAY} {host.address} %p")
        machine.run(["true"])
        for pid in relays():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: relays() == [], 5, "the command is gone, with its entry in the process table")
        assert machine.run(["hostname"]).stdout == b"behind-a-command\n"
        assert machine.connection.opened == 2

    def test_a_host_that_refuses_us_leaves_no_command(self, host: Host, ssh: Path) -> None:
        machine = self.machine(host, ssh, f"{RELAY} {host.address} %p")
        (ssh / "known_hosts").unlink()
        with pytest.raises(Exception, match="not known"):
            machine.run(["true"])
        assert relays() == []

    def test_a_jump_host_may_be_behind_it(self, host: Host, ssh: Path) -> None:
        self.machine(host, ssh, f"{RELAY} {host.address} %p")
        inner = SshAccess(
            hostname="127.0.0.1",
            user="root",
            identity_file=host.identity_file,
            host_key=host.fingerprint,
            proxy_jump=SshAccess(hostname="i-0abc"),
        )
        assert SshMachine(inner).run(["hostname"]).stdout == b"behind-a-command\n"

    def test_a_host_that_is_off_is_explained_by_the_command(
        self, host: Host, ssh: Path, testbed: Testbed
    ) -> None:
        machine = self.machine(host, ssh, f"{RELAY} {host.address} 23")
        with pytest.raises(HostUnreachableError, match=r"ended with exit code 1: ConnectionRefusedError"):
            machine.run(["true"])
