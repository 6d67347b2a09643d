"""What a host is: its SSH server, its Docker Engine, its users, its disk, and what it must not see."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
import pytest

from tests.polling import wait_until
from tests.testbed.conftest import get, get_when_ready
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.processes import run
from tests.testbed.testbed import Testbed

pytestmark = pytest.mark.testbed

GIB = 1 << 30


@contextmanager
def ssh(host: Host, **options: Any) -> Iterator[paramiko.SSHClient]:
    """A connection that trusts the host's key and no other."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    entry = paramiko.hostkeys.HostKeyEntry.from_line(host.known_hosts_line)
    assert entry is not None
    assert entry.key is not None
    client.get_host_keys().add(host.address, entry.key.get_name(), entry.key)
    how = {"username": host.user, "key_filename": str(host.identity_file), **options}
    try:
        client.connect(host.address, host.port, allow_agent=False, look_for_keys=False, timeout=10, **how)
        yield client
    finally:
        client.close()


def answer(client: paramiko.SSHClient, command: str) -> tuple[int, str]:
    stdin, stdout, stderr = client.exec_command(command, timeout=20)
    text = stdout.read().decode() + stderr.read().decode()
    status = stdout.channel.recv_exit_status()
    for stream in (stdin, stdout, stderr):
        stream.close()
    return status, text.strip()


def test_ssh_with_the_identity_and_the_pinned_host_key(pair: list[Host]) -> None:
    with ssh(pair[0]) as client:
        assert answer(client, "hostname; id -un; pwd") == (0, "alpha\nroot\n/root")


def test_ssh_with_another_key_is_refused(pair: list[Host]) -> None:
    key = paramiko.RSAKey.generate(2048)
    with pytest.raises(paramiko.AuthenticationException), ssh(pair[0], key_filename=None, pkey=key):
        pass


def test_a_rotated_host_key_is_not_the_pinned_one(pair: list[Host], tmp_path: Path) -> None:
    host = pair[1]
    before = (host.host_key, host.fingerprint)
    client = paramiko.SSHClient()
    kind, key = host.host_key.split()
    client.get_host_keys().add(
        host.address, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(key))
    )
    host.rotate_host_key()
    assert host.fingerprint.startswith("SHA256:")
    assert before[0] != host.host_key
    assert before[1] != host.fingerprint
    with pytest.raises(paramiko.BadHostKeyException):
        client.connect(host.address, username="root", key_filename=str(host.identity_file))
    client.close()
    with ssh(host) as client:
        assert answer(client, "true") == (0, "")


def test_docker_engines_of_two_hosts_are_two(pair: list[Host]) -> None:
    alpha, beta = pair
    assert [get(host.address)["service"] for host in pair] == ["alpha", "beta"]
    alpha.check(["docker", "run", "--name", "only-here", "testbed/app:1", "true"])
    assert "only-here" in alpha.check(["docker", "ps", "-a"])
    assert "only-here" not in beta.check(["docker", "ps", "-a"])
    with alpha.docker() as client:
        client.containers.get("only-here").remove()


def test_users_with_a_password_and_with_and_without_rights_to_docker(pair: list[Host]) -> None:
    host = pair[0]
    host.add_user("deployer", docker_group=True, password="correct horse")
    host.add_user("visitor")
    with ssh(host, username="deployer", key_filename=None, password="correct horse") as client:
        assert answer(client, "id -un; docker ps -q | wc -l") == (0, "deployer\n1")
    with ssh(host, username="visitor") as client:
        status, text = answer(client, "docker ps")
        assert status != 0
        assert "permission denied" in text
    with (
        pytest.raises(paramiko.AuthenticationException),
        ssh(host, username="deployer", key_filename=None, password="wrong"),
    ):
        pass


def test_sees_and_touches_none_of_this_machines_files_processes_and_disks(
    pair: list[Host], tmp_path: Path
) -> None:
    host = pair[0]
    assert host.exec(["test", "-e", __file__]).returncode == 1
    (tmp_path / "private").write_text("private")
    assert host.exec(["test", "-e", str(tmp_path)]).returncode == 1
    assert host.exec(["test", "-e", str(Path.home() / ".bashrc")]).returncode == 1
    assert host.check(["ls", "-A", "/usr/local"]) == ""
    host.write_file("/usr/bin/planted", "#!/bin/sh\necho planted\n", mode=0o755)
    assert host.check(["planted"]) == "planted\n"
    assert not Path("/usr/bin/planted").exists()
    assert host.check(["cat", "/proc/1/cmdline"]).startswith("/bin/bash")
    assert not host.exists_process("pytest")
    assert host.check(["find", "/dev", "-type", "b"]) == ""
    host.check(["rm", "/usr/bin/planted"])


def test_no_route_leads_out(pair: list[Host], testbed: Testbed) -> None:
    host = pair[0]
    assert host.check(["ip", "route", "show", "default"]) == ""
    beyond = "10.79.0.1"
    run(["ip", "address", "add", f"{beyond}/32", "dev", testbed.switch.name])
    host.check(["ip", "route", "add", beyond, "via", testbed.address])
    try:
        # Nothing listens on that port: whoever is reached says so at once; whoever is not says nothing.
        for address, code, words in [(testbed.address, 1, "Connection refused"), (beyond, 124, "")]:
            done = host.exec(["timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{address}/9"])
            assert done.returncode == code
            assert words in done.stderr
    finally:
        host.check(["ip", "route", "del", beyond])
        run(["ip", "address", "del", f"{beyond}/32", "dev", testbed.switch.name])


def test_tells_which_processes_run_and_what_listens(pair: list[Host]) -> None:
    host = pair[0]
    assert host.exists_process("^/usr/sbin/sshd|sshd: .*listener")
    assert not host.exists_process("sleep 4711")
    with host.popen(["sleep", "4711"]) as process:
        wait_until(lambda: host.exists_process("sleep 4711"), 5)
        host.check(["pkill", "-f", "sleep 4711"])
        process.wait(5)
    assert {"tcp 0.0.0.0:22", "tcp 0.0.0.0:8000"} <= host.listening_ports()


def test_memory_and_cpus_are_those_asked_for_and_containers_are_bounded(
    make_host: Callable[..., Host],
) -> None:
    host = make_host("small", memory=1 * GIB, cpus=1)
    with host.docker() as client:
        info = client.info()
        assert (info["MemTotal"], info["NCPU"]) == (1 * GIB, 1)
        load_image(host, "python")
        greedy = ["python3", "-c", "len(bytearray(200_000_000))"]
        container = client.containers.run(
            "testbed/python:1", greedy, detach=True, mem_limit="64m", pids_limit=50
        )
        assert container.wait(timeout=20)["StatusCode"] == 137
        container.reload()
        assert container.attrs["State"]["OOMKilled"]
    assert host.check(["nproc"]) == "1\n"


def test_a_disk_of_its_own_can_be_full_and_keeps_its_content(make_host: Callable[..., Host]) -> None:
    host = make_host("full", disk=200 << 20)
    load_image(host, "busybox")
    host.fill_disk()
    assert "No space left on device" in host.exec(["sh", "-c", "head -c 100000 /dev/zero >/root/more"]).stderr
    host.free_disk()
    host.check(["sh", "-c", "echo kept >/root/more"])
    host.reboot()
    assert host.read_file("/root/more") == "kept\n"
    assert host.check(["docker", "run", "--rm", "testbed/busybox:1", "echo", "runs"]) == "runs\n"


def test_a_host_without_docker_has_no_command_of_that_name(make_host: Callable[..., Host]) -> None:
    host = make_host("bare", docker="absent")
    with ssh(host) as client:
        status, text = answer(client, "docker ps")
        assert status == 127
        assert "command not found" in text


def test_the_docker_engine_stops_and_starts(pair: list[Host]) -> None:
    host = pair[1]
    host.stop_docker()
    with ssh(host) as client:
        status, text = answer(client, "docker ps")
        assert status == 1
        assert "Cannot connect to the Docker daemon" in text
    host.start_docker()
    assert get_when_ready(host.address)["service"] == "beta"
