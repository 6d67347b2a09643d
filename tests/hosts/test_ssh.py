"""Connections to real hosts: who is let in, what is pinned, and what happens when the network goes."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest
from pydantic import SecretStr

from prefect_dstack.bundles import collect_files
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import (
    HostAuthenticationError,
    HostError,
    HostKeyError,
    HostNotReadyError,
    HostUnreachableError,
)
from prefect_dstack.hosts import files
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.pool import close_connections, connection_to, connections, shared_connections
from prefect_dstack.hosts.ssh_machine import SshMachine
from prefect_dstack.hosts.upload import pack_files
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed

pytestmark = pytest.mark.testbed


@pytest.fixture(scope="module")
def host(testbed: Testbed) -> Iterator[Host]:
    host = testbed.host("ssh-host")
    host.add_user("deployer", docker_group=True, password="correct horse")
    host.add_user("nobody-special")
    yield host
    testbed.remove(host)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    yield tmp_path
    close_connections()


def access(host: Host, **changes: object) -> SshAccess:
    return SshAccess.model_validate(
        {
            "hostname": host.address,
            "user": "root",
            "identity_file": host.identity_file,
            "host_key": host.fingerprint,
            **changes,
        }
    )


def machine(host: Host, **changes: object) -> SshMachine:
    return SshMachine(access(host, **changes), name=host.name)


def user_of(machine: SshMachine) -> str:
    return machine.run(["id", "-un"]).stdout.decode().strip()


def one_line(error: pytest.ExceptionInfo[HostError], host: Host) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert host.name in message
    return message


class TestLogin:
    def test_with_a_key_file(self, host: Host) -> None:
        assert user_of(machine(host)) == "root"

    def test_with_the_text_of_a_key(self, host: Host) -> None:
        text = SecretStr(host.identity_file.read_text())
        assert user_of(machine(host, identity_file=None, ssh_key=text)) == "root"

    def test_with_a_password(self, host: Host) -> None:
        secret = SecretStr("correct horse")
        assert user_of(machine(host, user="deployer", identity_file=None, password=secret)) == "deployer"

    def test_with_an_agent(self, host: Host, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
        variables = dict(line.split(";")[0].split("=", 1) for line in agent.splitlines() if "=" in line)
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", variables["SSH_AUTH_SOCK"])
            subprocess.run(["ssh-add", "-q", host.identity_file], check=True)
            assert user_of(machine(host, identity_file=None)) == "root"
        finally:
            os.kill(int(variables["SSH_AGENT_PID"]), signal.SIGTERM)

    def test_with_an_alias_of_the_ssh_configuration(self, host: Host, own_home: Path) -> None:
        (own_home / ".ssh/config").write_text(
            f"Host gpu\n  HostName {host.address}\n  User root\n  IdentityFile {host.identity_file}\n"
        )
        (own_home / ".ssh/known_hosts").write_text(host.known_hosts_line + "\n")
        assert user_of(SshMachine(SshAccess(hostname="gpu"))) == "root"

    def test_a_wrong_key_is_named(self, host: Host, own_home: Path) -> None:
        key = own_home / "wrong"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        with pytest.raises(HostAuthenticationError) as error:
            machine(host, identity_file=key).run(["true"])
        message = one_line(error, host)
        assert "`root`" in message
        assert f"{key} SHA256:" in message
        assert "authorized_keys" in message

    def test_a_wrong_password_is_not_shown(self, host: Host) -> None:
        with pytest.raises(HostAuthenticationError) as error:
            machine(host, user="deployer", identity_file=None, password=SecretStr("hunter2")).run(["true"])
        assert "hunter2" not in one_line(error, host)

    def test_a_locked_key_asks_for_the_agent(self, host: Host, own_home: Path) -> None:
        key = own_home / "locked"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", key], check=True)
        with pytest.raises(HostAuthenticationError, match=r"passphrase.*ssh-add"):
            machine(host, identity_file=key).run(["true"])

    def test_a_missing_key_is_named(self, host: Host, own_home: Path) -> None:
        with pytest.raises(HostAuthenticationError, match="No such file"):
            machine(host, identity_file=own_home / "missing").run(["true"])


class TestHostKey:
    def test_unknown_is_refused_with_the_fingerprint(self, host: Host) -> None:
        with pytest.raises(HostKeyError) as error:
            machine(host, host_key=None).run(["true"])
        assert f"host_key: {host.fingerprint}" in one_line(error, host)

    def test_known_hosts_is_believed_hashed_too(self, host: Host, own_home: Path) -> None:
        known = own_home / ".ssh/known_hosts"
        known.write_text(host.known_hosts_line + "\n")
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
        assert host.address not in known.read_text()
        assert user_of(machine(host, host_key=None)) == "root"

    def test_the_whole_key_may_be_given(self, host: Host) -> None:
        assert user_of(machine(host, host_key=host.host_key)) == "root"

    @pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
    def test_a_fingerprint_of_any_of_its_keys_will_do(self, host: Host, kind: str) -> None:
        key = f"/etc/ssh/ssh_host_{kind}_key"
        host.check(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key])
        configure_ssh(host, f"HostKey {key}")
        shown = host.check(["ssh-keygen", "-lf", f"{key}.pub"])
        assert user_of(machine(host, host_key=shown.split()[1])) == "root"

    def test_changed_is_refused_with_both_fingerprints(self, make_host: Callable[..., Host]) -> None:
        host = make_host("rekeyed", docker="absent")
        before = host.fingerprint
        reached = machine(host)
        assert user_of(reached) == "root"
        host.rotate_host_key()
        close_connections()
        with pytest.raises(HostKeyError) as error:
            machine(host, host_key=before).run(["true"])
        message = one_line(error, host)
        assert before in message
        assert host.fingerprint in message


class TestConnection:
    def test_all_threads_share_one(self, host: Host) -> None:
        with ThreadPoolExecutor(24) as pool:
            outcomes = list(pool.map(lambda n: machine(host).run(["echo", str(n)]).stdout, range(48)))
        assert outcomes == [f"{n}\n".encode() for n in range(48)]
        assert [connection.opened for connection in connections()] == [1]

    def test_one_failure_is_everybodys(self, host: Host) -> None:
        attempts = []

        def attempt(_: int) -> None:
            with pytest.raises(HostKeyError) as error:
                machine(host, host_key=None).run(["true"])
            attempts.append(error.value)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(attempt, range(8)))
        assert len(set(map(id, attempts))) < len(attempts)

    def test_the_last_flow_out_closes_it(self, host: Host) -> None:
        with shared_connections():
            with shared_connections():
                machine(host).run(["true"])
            assert len(connections()) == 1
        assert connections() == ()

    def test_more_commands_than_the_host_allows_sessions_wait_for_their_turn(self, host: Host) -> None:
        with ThreadPoolExecutor(30) as pool:
            outcomes = list(pool.map(lambda _: machine(host).run(["sleep", "0.1"]).exit_code, range(30)))
        assert outcomes == [0] * 30

    def test_a_restarted_host_is_reached_again(self, make_host: Callable[..., Host]) -> None:
        host = make_host("rebooted", docker="absent")
        reached = machine(host)
        reached.run(["true"])
        host.reboot()
        assert reached.run(["hostname"]).stdout == b"rebooted\n"
        assert reached.connection.opened == 2

    def test_what_may_be_repeated_is_and_what_may_not_is_not(self, host: Host) -> None:
        # The first time, the command cuts its own connection.
        cut = 'echo x >>"$1"; [ "$(wc -l <"$1")" -gt 1 ] || kill -9 "$PPID"; echo done'
        reached = machine(host)
        with pytest.raises(HostUnreachableError, match="lost while"):
            reached.run(["sh", "-c", cut, "sh", "/tmp/once"])
        assert host.read_file("/tmp/once") == "x\n"
        assert reached.run(["sh", "-c", cut, "sh", "/tmp/twice"], idempotent=True).stdout == b"done\n"
        assert host.read_file("/tmp/twice") == "x\nx\n"

    def test_a_lost_connection_is_no_exit_code(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        # A dying transport closes its channels before it says that it is dead.
        original = vars(paramiko.Channel)["_unlink"]

        def slow(channel: paramiko.Channel) -> None:
            original(channel)
            threading.Event().wait(0.05)

        monkeypatch.setattr(paramiko.Channel, "_unlink", slow)
        with pytest.raises(HostUnreachableError, match="lost while"):
            machine(host).run(["sh", "-c", 'kill -9 "$PPID"; sleep 5'])

    def test_a_partition_is_noticed_in_time(self, make_host: Callable[..., Host]) -> None:
        host = make_host("partitioned", docker="absent")
        reached = machine(host)
        reached.run(["true"])
        host.partition()
        with pytest.raises(HostUnreachableError) as error:
            reached.run(["sleep", "60"], timeout=2)
        one_line(error, host)
        host.heal()

        def answers() -> bool:
            with contextlib.suppress(HostUnreachableError):
                return reached.run(["true"]).exit_code == 0
            return False

        wait_until(answers, 30, "it answers, once its silence is over")

    def test_a_closed_port_is_named(self, host: Host) -> None:
        with pytest.raises(HostUnreachableError, match=rf"{host.address}:23\).*refused"):
            machine(host, port=23).run(["true"])

    def test_an_address_that_nobody_has_is_named(self, host: Host, testbed: Testbed) -> None:
        nobody = str(testbed.network[200])
        with pytest.raises(HostUnreachableError, match=r"no route|no answer"):
            machine(host, hostname=nobody).run(["true"])

    def test_a_name_that_does_not_resolve_is_named(self, host: Host) -> None:
        with pytest.raises(HostUnreachableError, match="does not resolve"):
            machine(host, hostname="no-such-host.invalid").run(["true"])


class TestJump:
    def test_a_host_behind_a_host_is_reached_through_it(self, make_host: Callable[..., Host]) -> None:
        door = make_host("door", internal_network="10.78.9.0/24", docker="absent")
        inner = make_host("inner", public=False, internal_network="10.78.9.0/24", docker="absent")
        reached = machine(inner, proxy_jump=access(door))
        assert reached.run(["hostname"]).stdout == b"inner\n"
        assert len(connections()) == 2
        inner.reboot()
        assert reached.run(["hostname"]).stdout == b"inner\n"

    def test_a_jump_that_does_not_get_through_is_named(self, host: Host) -> None:
        reached = SshMachine(access(host, hostname="127.0.0.1", port=9, proxy_jump=access(host)), name="far")
        with pytest.raises(HostUnreachableError, match=r"far .*does not get through"):
            reached.run(["true"])


class TestTcpConnections:
    # The body comes once the client has read the headers, which say that the connection ends with it.
    SERVER = """
import socket
with socket.create_server(("127.0.0.1", 7000)) as server:
    print("listening", flush=True)
    with server.accept()[0] as connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n")
        input()
        connection.sendall(b"whole")
"""

    def test_an_answer_that_ends_with_its_connection_is_read_to_its_end(self, host: Host) -> None:
        command, pipe = ["python3", "-c", self.SERVER], subprocess.PIPE
        with host.popen(command, stdin=pipe, stdout=pipe) as server:
            assert server.stdin
            assert server.stdout
            assert server.stdout.readline() == "listening\n"
            connection = http.client.HTTPConnection("localhost")
            connection.sock = machine(host).connect("127.0.0.1", 7000)
            connection.request("GET", "/")
            response = connection.getresponse()
            server.stdin.write("\n")
            server.stdin.close()
            assert response.read() == b"whole"


class TestCommands:
    def test_arguments_are_data(self, host: Host) -> None:
        arguments = ["a b", "$HOME", "`id`", "*", "", "'\"", "two\nlines", "--", "\\", "ä"]
        shown = machine(host).run(["printf", "%s\\0", *arguments]).stdout
        assert shown.decode().split("\0")[:-1] == arguments

    def test_input_and_both_outputs_of_any_size(self, host: Host) -> None:
        data = os.urandom(4_000_000)
        outcome = machine(host).run(["sh", "-c", "tee /dev/stderr; exit 7"], stdin=data)
        assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (7, data, data)

    def test_a_command_that_does_not_read_its_input(self, host: Host) -> None:
        assert machine(host).run(["true"], stdin=b"x" * 4_000_000).exit_code == 0

    def test_a_missing_command_and_a_signal(self, host: Host) -> None:
        assert machine(host).run(["no-such-command"]).exit_code == 127
        assert machine(host).run(["sh", "-c", "kill -9 $$"]).exit_code != 0

    def test_a_command_that_takes_too_long_is_given_up(self, host: Host) -> None:
        with pytest.raises(HostUnreachableError, match=r"`sleep` did not end within 0\.3 s"):
            machine(host).run(["sleep", "30"], timeout=0.3)
        assert machine(host).run(["true"]).exit_code == 0


class TestFiles:
    def test_a_file_has_its_mode_and_owner(self, host: Host) -> None:
        reached = machine(host)
        host.check(["mkdir", "/srv/files"])
        files.write_file(reached, "/srv/files/a b", b"\x00secret\n", mode=0o640, owner="deployer:root")
        assert host.check(["stat", "-c", "%a %U:%G", "/srv/files/a b"]) == "640 deployer:root\n"
        assert host.read_file("/srv/files/a b") == "\x00secret\n"
        assert host.check(["ls", "-A", "/srv/files"]) == "a b\n"
        files.remove(reached, ["/srv/files"])
        assert host.check(["ls", "-A", "/srv"]) == ""

    def test_as_root_through_sudo(self, make_host: Callable[..., Host]) -> None:
        host = make_host("with-sudo")
        host.add_user("admin")
        give_sudo(host, "admin")
        root = machine(host, user="admin").root()
        files.write_file(root, "/etc/owned-by-root", b"x", mode=0o600)
        assert host.check(["stat", "-c", "%a %U", "/etc/owned-by-root"]) == "600 root\n"
        assert machine(host, user="admin").docker().ping()

    def test_without_sudo_the_remedy_is_named(self, host: Host) -> None:
        with pytest.raises(HostNotReadyError, match="sudo"):
            machine(host, user="nobody-special").root()

    def test_readers_see_the_old_file_or_the_new_one(self, host: Host) -> None:
        reached = machine(host)
        old, new = b"o" * 300_000, b"n" * 300_000
        files.write_file(reached, "/srv/swapped", old)
        seen: set[bytes] = set()
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.add(reached.run(["cat", "/srv/swapped"]).stdout)

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            for _ in range(5):
                files.write_file(reached, "/srv/swapped", new)
                files.write_file(reached, "/srv/swapped", old)
            done.set()
            reading.result()
        assert seen <= {old, new}

    def test_a_full_disk_is_named_and_nothing_is_left(self, make_host: Callable[..., Host]) -> None:
        host = make_host("full", disk=512 * 1024**2, docker="absent")
        host.fill_disk()
        with pytest.raises(HostNotReadyError, match=r"full: .*disk is full"):
            files.write_file(machine(host), "/srv/big", b"x" * 1_000_000)
        assert host.check(["ls", "-A", "/srv"]) == ""


class TestLock:
    def test_only_one_holds_it(self, host: Host) -> None:
        reached = machine(host)
        with (
            reached.lock("/run/test.lock"),
            pytest.raises(HostNotReadyError, match="others here have held"),
            reached.lock("/run/test.lock", wait=1),
        ):
            pass
        with reached.lock("/run/test.lock", wait=1):
            pass

    def test_it_is_free_when_its_holder_is_gone(self, host: Host) -> None:
        first = connection_to(access(host))
        reached = machine(host)
        with pytest.raises(HostUnreachableError, match="was lost"), reached.lock("/run/gone.lock"):
            first.close()
        with reached.lock("/run/gone.lock", wait=2):
            pass

    def test_waiting_for_it_ends_when_it_is_free(self, host: Host) -> None:
        reached, order = machine(host), []
        inside = threading.Event()

        def second() -> None:
            inside.wait()
            with reached.lock("/run/queue.lock", wait=10):
                order.append("second")

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(second)
            try:
                with reached.lock("/run/queue.lock"):
                    inside.set()
                    order.append("first")
            finally:
                inside.set()
            waiting.result()
        assert order == ["first", "second"]


class TestDocker:
    def test_through_the_socket_with_many_threads(self, host: Host) -> None:
        engine = machine(host, user="deployer").docker()
        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(lambda _: engine.ping(), range(100)))
        assert [connection.opened for connection in connections()] == [1]

    def test_logs_files_and_commands_of_a_container(self, host: Host) -> None:
        load_image(host, "busybox")
        engine = machine(host).docker()
        container = engine.containers.create(
            "testbed/busybox:1", ["sh", "-c", "cat /in; sleep 600"], init=True
        )
        try:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                member = tarfile.TarInfo("in")
                member.size = 6
                archive.addfile(member, io.BytesIO(b"hello\n"))
            assert container.put_archive("/", buffer.getvalue())
            container.start()
            output = container.logs(stream=True, follow=True)
            assert next(output) == b"hello\n"
            assert container.exec_run(["cat", "/in"]).output == b"hello\n"
            stopping = threading.Thread(target=container.kill)
            stopping.start()
            assert list(output) == []
            stopping.join()
        finally:
            container.remove(force=True)

    def test_files_are_brought_into_a_container(self, host: Host, tmp_path: Path) -> None:
        load_image(host, "busybox")
        (tmp_path / "src/deep").mkdir(parents=True)
        (tmp_path / "src/deep/run.sh").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "src/deep/run.sh").chmod(0o755)
        (tmp_path / "src/large").write_bytes(os.urandom(20 * 1024**2))
        mapping = FileMapping.model_validate("src:new/place")
        engine = machine(host).docker()
        script = "cd /opt/new; ls -ld . place; place/deep/run.sh; wc -c <place/large"
        container = engine.containers.create("testbed/busybox:1", ["sh", "-c", script])
        try:
            with pack_files([mapping], collect_files([mapping], tmp_path).entries, "/opt") as archive:
                assert container.put_archive("/", archive)
            container.start()
            assert container.wait()["StatusCode"] == 0
            *directories, ran, size = container.logs().decode().splitlines()
        finally:
            container.remove(force=True)
        assert all(line.startswith("drwxr-xr-x") for line in directories), directories
        assert (ran, size) == ("ran", str(20 * 1024**2))

    def test_where_sockets_are_not_forwarded(self, make_host: Callable[..., Host]) -> None:
        host = make_host("no-forwarding")
        configure_ssh(host, "AllowStreamLocalForwarding no")
        engine = machine(host).docker()
        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(lambda _: engine.ping(), range(40)))
        assert host.exists_process("docker system dial-stdio")

    def test_it_outlives_a_reboot(self, make_host: Callable[..., Host]) -> None:
        host = make_host("engine-reboot")
        engine = machine(host).docker()
        assert engine.ping()
        host.reboot()
        assert engine.ping()

    def test_a_stream_that_was_cut_is_no_stream_that_ended(self, make_host: Callable[..., Host]) -> None:
        host = make_host("cut")
        load_image(host, "busybox")
        reached = machine(host)
        container = reached.docker().containers.run(
            "testbed/busybox:1", ["sh", "-c", "echo begun; sleep 600"], detach=True, init=True
        )
        output = container.logs(stream=True, follow=True)
        assert next(output) == b"begun\n"
        host.power_off()
        reached.connection.close()
        with pytest.raises(HostUnreachableError) as error:
            next(output)
        one_line(error, host)

    def test_no_docker(self, make_host: Callable[..., Host]) -> None:
        host = make_host("no-docker", docker="absent")
        with pytest.raises(HostNotReadyError) as error:
            machine(host).docker()
        assert "install" in one_line(error, host)

    def test_docker_that_is_stopped(self, make_host: Callable[..., Host]) -> None:
        host = make_host("docker-stopped", docker="stopped")
        with pytest.raises(HostNotReadyError) as error:
            machine(host).docker()
        assert "systemctl" in one_line(error, host)
        host.start_docker()
        assert machine(host).docker().ping()

    def test_docker_that_stops_later(self, make_host: Callable[..., Host]) -> None:
        host = make_host("docker-stops")
        engine = machine(host).docker()
        host.stop_docker()
        with pytest.raises(HostNotReadyError) as error:
            engine.ping()
        assert "systemctl" in one_line(error, host)
        host.start_docker()
        assert engine.ping()

    def test_no_rights(self, host: Host) -> None:
        with pytest.raises(HostNotReadyError) as error:
            machine(host, user="nobody-special").docker()
        assert "usermod -aG docker nobody-special" in one_line(error, host)


class TestUnixSockets:
    ECHO = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/{name}'); s.listen(); "
    ECHO += "c, _ = s.accept(); d = c.recv(99); c.sendall(d.upper()); c.close()"

    @pytest.mark.parametrize("user", ["root", "admin"])
    def test_a_socket_of_root_is_reached(self, make_host: Callable[..., Host], user: str) -> None:
        host = make_host(f"sockets-{user}", docker="absent")
        if user != "root":
            host.add_user(user)
            give_sudo(host, user)
        server = host.popen(["python3", "-c", self.ECHO.format(name="echo.sock")])
        try:
            wait_until(lambda: host.exec(["test", "-S", "/run/echo.sock"]).returncode == 0, 10, "it listens")
            host.check(["chmod", "600", "/run/echo.sock"])
            channel = machine(host, user=user).open_unix_socket("/run/echo.sock", as_root=True)
            channel.sendall(b"hello")
            channel.settimeout(10)
            assert channel.recv(99) == b"HELLO"
            channel.close()
        finally:
            server.kill()
            server.wait()

    def test_a_socket_that_is_not_there(self, host: Host) -> None:
        with pytest.raises(HostNotReadyError, match=r"nothing listens at /run/none\.sock"):
            machine(host).open_unix_socket("/run/none.sock")


def configure_ssh(host: Host, line: str) -> None:
    """Add a line to the SSH server's configuration, before all others."""
    path = "/etc/ssh/sshd_config"
    host.write_file(path, f"{line}\n{host.read_file(path)}")
    host.restart_ssh()


def give_sudo(host: Host, user: str) -> None:
    """Let a user become root without a password."""
    if host.exec(["sh", "-c", "command -v sudo"]).returncode:
        pytest.skip("needs the package sudo")
    host.write_file(f"/etc/sudoers.d/{user}", f"{user} ALL=(ALL) NOPASSWD:ALL\n", mode=0o440)
