"""A host: a machine of its own for all who reach it through its network, SSH server or Docker Engine."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import docker

from tests.polling import wait_until
from tests.testbed.cgroups import ControlGroup
from tests.testbed.engine_answers import engine_answers
from tests.testbed.network import Port, Switch
from tests.testbed.processes import NamespacedProcess, run

BOOT = Path(__file__).with_name("boot.sh")

DockerState = Literal["running", "stopped", "absent"]


@dataclass(frozen=True)
class Machine:
    """What a host is made of.

    Args:
        docker: Whether the Docker Engine is started at boot, only installed, or not even installed.
        memory: Bytes of memory; default this machine's.
        cpus: Number of CPUs; default all of this machine's, which is also the most it can be.
        disk: Bytes of a disk of its own, at least 64 MB; default a share of this machine's.
    """

    docker: DockerState = "running"
    memory: int | None = None
    cpus: int | None = None
    disk: int | None = None


class Endpoint(Protocol):
    """Anything with ports on the switch."""

    @property
    def ports(self) -> Sequence[Port]:
        """Its sockets on the switch."""
        ...


class Host:
    """A host of a testbed; made by `Testbed.host`.

    Args:
        name: Its host name.
        directory: Where its disk lives on this machine.
        group: The control group of all its processes.
        switch: What its cables lead to.
        ports: Its sockets on the switch; the first is the one that clients use.
        machine: What it is made of.
        identity_file: The private key that may log in as root.
    """

    port = 22
    user = "root"

    def __init__(
        self,
        name: str,
        *,
        directory: Path,
        group: ControlGroup,
        switch: Switch,
        ports: Sequence[Port],
        machine: Machine,
        identity_file: Path,
    ) -> None:
        self.name = name
        self.ports = tuple(ports)
        self.machine = machine
        self.identity_file = identity_file
        self._directory = directory
        self._group = group
        self._switch = switch
        self._process: NamespacedProcess | None = None
        disk = directory / "disk"
        (directory / "mount").mkdir(parents=True)
        if machine.disk is None:
            disk.mkdir()
        else:
            with disk.open("wb") as file:
                file.truncate(machine.disk)
            run(["mkfs.ext4", "-q", "-m", "0", str(disk)])

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    # Addresses and keys

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return str(self.ports[0].address.ip)

    @property
    def internal_address(self) -> str | None:
        """Its address on its internal network, if it has one."""
        return str(self.ports[-1].address.ip) if self.ports[-1].interface == "eth1" else None

    @property
    def host_key(self) -> str:
        """The public line of its SSH host key: type and key."""
        return " ".join(self.read_file("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its SSH host key, as OpenSSH shows it: `SHA256:...`."""
        digest = hashlib.sha256(base64.b64decode(self.host_key.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def known_hosts_line(self) -> str:
        """Its line for a `known_hosts` file."""
        return f"{self.address} {self.host_key}"

    # Power

    @property
    def running(self) -> bool:
        """Whether it is switched on."""
        return self._process is not None and self._process.alive

    def start(self, *, wait: bool = True) -> None:
        """Switch it on.

        Args:
            wait: Whether to return only when SSH and, if it has one, the Docker Engine answer.
        """
        if self.running:
            return
        self._group.create(memory=self.machine.memory, cpus=self.machine.cpus)
        network = "\n".join(f"{port.interface} {port.address}" for port in self.ports)
        process = NamespacedProcess(
            ["/bin/bash", str(BOOT)],
            namespaces=["mount", "pid", "network", "uts", "ipc", "cgroup"],
            group=self._group,
            log=self._directory / "boot.log",
            environment={
                "HOST": self.name,
                "DISK": str(self._directory / "disk"),
                "MOUNT": str(self._directory / "mount"),
                "DOCKER": self.machine.docker,
                "NETWORK": network,
                "MEMORY": str(self.machine.memory or ""),
                "AUTHORIZED_KEY": self.identity_file.with_suffix(".pub").read_text().strip(),
            },
        )
        self._process = process
        for port in self.ports:
            self._switch.attach(port, process.pid)
        process.go_on()
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return when SSH and, if it was started, the Docker Engine answer."""
        try:
            wait_until(self._ssh_answers, timeout, f"SSH of {self.name} answers", interval=0.02)
            if self.machine.docker == "running":
                wait_until(self._docker_answers, timeout, f"Docker Engine of {self.name} answers")
        except (TimeoutError, RuntimeError) as error:
            raise RuntimeError(f"{error}\n{self.logs()}") from error

    def power_off(self) -> None:
        """Cut the power: nobody hears a word of farewell, and no process of it gets one."""
        if self._process is None:
            return
        if self._process.alive:
            for port in self.ports:
                self._switch.detach(port)
        self._process.kill()
        self._process = None
        self._group.remove()

    def reboot(self, *, wait: bool = True) -> None:
        """Cut the power and switch it on again; its disk keeps what was on it."""
        self.power_off()
        self.start(wait=wait)

    def remove(self) -> None:
        """Cut the power and throw its disk away."""
        self.power_off()
        with self._switch.changed_rules() as rules:
            rules.forget({port.name for port in self.ports})
        shutil.rmtree(self._directory)

    # Network

    def partition(self) -> None:
        """Lose every packet from and to it, silently."""
        with self._switch.changed_rules() as rules:
            rules.partitioned.update(port.name for port in self.ports)

    def heal(self) -> None:
        """End a partition."""
        with self._switch.changed_rules() as rules:
            rules.partitioned.difference_update(port.name for port in self.ports)

    def isolate_from(self, other: Endpoint) -> None:
        """Lose every packet between it and the other, a host or the testbed, which is this machine."""
        with self._switch.changed_rules() as rules:
            rules.isolated.update(frozenset(pair) for pair in self._pairs(other))

    def only_ssh_from(self, other: Endpoint) -> None:
        """Lose every packet between it and the other, but those of SSH connections made by the other."""
        with self._switch.changed_rules() as rules:
            rules.only_ssh.update((theirs, ours) for ours, theirs in self._pairs(other))

    def rejoin(self, other: Endpoint) -> None:
        """End what `isolate_from` and `only_ssh_from` did between it and the other, whichever said it."""
        with self._switch.changed_rules() as rules:
            for pair in self._pairs(other):
                rules.isolated.discard(frozenset(pair))
                rules.only_ssh.difference_update([pair, pair[::-1]])

    # What runs on it and what lies on its disk; none of this uses its network

    def exec(
        self,
        command: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 - as in subprocess
        timeout: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it as root to its end; nothing is raised when it fails."""
        return self._running.run(command, input=input, timeout=timeout, environment=environment)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on it as root; `options` as for `subprocess.Popen`."""
        return self._running.popen(command, **options)

    def check(self, command: Sequence[str], *, input: str | None = None) -> str:  # noqa: A002
        """Run a command on it as root and return its standard output.

        Raises:
            RuntimeError: It failed; carries what it wrote to standard error.
        """
        done = self.exec(command, input=input)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def read_file(self, path: str) -> str:
        """The text of one of its files."""
        return self.check(["cat", path])

    def write_file(self, path: str, text: str, *, mode: int = 0o644, owner: str = "root") -> None:
        """Write one of its files, with the directories above it."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1" && chown "$3": "$1"'
        self.check(["sh", "-c", script, "write", path, f"{mode:o}", owner], input=text)

    def exists_process(self, pattern: str) -> bool:
        """Whether a process runs on it whose command line matches a regular expression."""
        return self.exec(["pgrep", "-f", "--", pattern]).returncode == 0

    def listening_ports(self) -> set[str]:
        """What it listens on: `tcp 0.0.0.0:22` and so on."""
        lines = self.check(["ss", "-Htuln"]).splitlines()
        return {f"{fields[0]} {fields[4]}" for fields in map(str.split, lines)}

    def add_user(
        self,
        name: str,
        *,
        docker_group: bool = False,
        public_key: str | None = None,
        password: str | None = None,
    ) -> None:
        """Add a user.

        Args:
            name: Login name.
            docker_group: Whether the user may use the Docker Engine.
            public_key: Line for the user's `authorized_keys`; default that of the testbed's identity.
            password: Password to log in with; default none.
        """
        groups = ["-G", "docker"] if docker_group else []
        # The password `*` is none; an account made without this is locked, and refused with any key.
        self.check(["useradd", "-m", "-s", "/bin/bash", "-p", "*", *groups, name])
        if password is not None:
            self.check(["chpasswd"], input=f"{name}:{password}\n")
        key = public_key or self.identity_file.with_suffix(".pub").read_text()
        self.check(["install", "-d", "-m", "700", "-o", name, f"/home/{name}/.ssh"])
        self.write_file(f"/home/{name}/.ssh/authorized_keys", key.strip() + "\n", mode=0o600, owner=name)

    def rotate_host_key(self) -> None:
        """Give it a new SSH host key; open connections stay."""
        key = "/etc/ssh/ssh_host_ed25519_key"
        self.check(["sh", "-c", f"rm {key} && ssh-keygen -q -t ed25519 -N '' -C {self.name} -f {key}"])
        self.restart_ssh()

    def set_host_key(self, private_key: str) -> None:
        """Give it the SSH host key of which this is the private half, in OpenSSH's format."""
        key = "/etc/ssh/ssh_host_ed25519_key"
        self.write_file(key, private_key, mode=0o600)
        self.check(["sh", "-c", f"ssh-keygen -y -f {key} >{key}.pub"])
        self.restart_ssh()

    def stop_ssh(self) -> None:
        """Stop the SSH server; open connections stay."""
        self.exec(["pkill", "-o", "-x", "sshd"])
        wait_until(lambda: not self.exists_process("^/usr/sbin/sshd|^sshd: .*listener"), 10, "sshd ends")

    def restart_ssh(self) -> None:
        """Stop and start the SSH server, which reads its configuration and host key again."""
        self.stop_ssh()
        self._daemon("/usr/sbin/sshd -D -e", "/var/log/sshd.log")
        wait_until(self._ssh_answers, 10, f"SSH of {self.name} answers", interval=0.02)

    def stop_docker(self) -> None:
        """Stop the Docker Engine as its service manager would; its containers stop with it."""
        self.exec(["pkill", "-x", "dockerd"])
        wait_until(lambda: not self.exists_process("^dockerd|containerd"), 30, "the Docker Engine ends")

    def start_docker(self) -> None:
        """Start the Docker Engine."""
        self._daemon("dockerd --dns 127.0.0.1 --insecure-registry 10.0.0.0/8", "/var/log/dockerd.log")
        wait_until(self._docker_answers, 60, f"Docker Engine of {self.name} answers")

    @contextmanager
    def docker(self) -> Iterator[docker.DockerClient]:
        """A client of its Docker Engine that needs no network."""
        client = docker.DockerClient(base_url=f"unix://{self._docker_socket}", timeout=60)
        try:
            yield client
        finally:
            client.close()

    def fill_disk(self) -> None:
        """Leave no free byte on its disk, until `free_disk`."""
        if self.machine.disk is None:
            raise ValueError(f"{self.name} shares this machine's disk; make it with `disk=`")
        # What a file system sets aside for a growing file is free again when the file is closed.
        fill = "cat /dev/zero >$0; while head -c 4096 /dev/zero >>$0; do :; done"
        self.exec(["sh", "-c", fill, "/var/lib/docker/filling"])

    def free_disk(self) -> None:
        """Take back what `fill_disk` did."""
        self.check(["rm", "-f", "/var/lib/docker/filling"])

    def logs(self) -> str:
        """What its boot, its SSH server and its Docker Engine had to say."""
        text = (self._directory / "boot.log").read_text(errors="replace")
        if self.running:
            command = ["sh", "-c", "tail -n 40 /var/log/sshd.log /var/log/dockerd.log"]
            text += self.exec(command).stdout
        return text

    @property
    def _running(self) -> NamespacedProcess:
        if self._process is None or not self._process.alive:
            raise RuntimeError(f"{self.name} is switched off\n{self.logs()}")
        return self._process

    @property
    def _docker_socket(self) -> Path:
        return self._running.root / "run/docker.sock"

    def _pairs(self, other: Endpoint) -> Iterable[tuple[str, str]]:
        return [(ours.name, theirs.name) for ours in self.ports for theirs in other.ports]

    def _daemon(self, command: str, log: str) -> None:
        # Its parent ends at once, so that it becomes a child of the host's first process, as after a boot.
        self.check(["sh", "-c", f"exec </dev/null >>{log} 2>&1; setsid {command} &"])

    def _ssh_answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self.name} did not boot")
        # A packet sent before the network is up would be sent again by the kernel only a second later.
        sockets = Path(f"/proc/{self._running.pid}/net/tcp").read_text()
        if not re.search(r":0016 00000000:0000 0A", sockets):
            return False
        if self.ports[0].interface == "eth1":
            command = "exec 3<>/dev/tcp/127.0.0.1/22 && head -c 4 <&3"
            return self.exec(["bash", "-c", command], timeout=5).stdout == "SSH-"
        try:
            with socket.create_connection((self.address, self.port), timeout=2) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _docker_answers(self) -> bool:
        return engine_answers(self._docker_socket)
