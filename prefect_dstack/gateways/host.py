"""A gateway on a host: HAProxy in a container that the host's Docker Engine keeps running."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from docker import errors, types
from requests import RequestException

from prefect_dstack.errors import GatewayError, HostError, HostNotReadyError
from prefect_dstack.gateways.runtime import Connection
from prefect_dstack.hosts import files
from prefect_dstack.hosts.container_output import container_output
from prefect_dstack.hosts.remote_ports import listening_ports
from prefect_dstack.hosts.ssh_machine import Root, SshMachine

if TYPE_CHECKING:
    from docker.models.containers import Container

__all__ = ["GATEWAY_LABEL", "HAPROXY_IMAGE", "HostPlace", "gateways_on"]

HAPROXY_IMAGE = "haproxy:2.8"
GATEWAY_LABEL = "prefect-dstack.gateway"
DIRECTORY = "/var/lib/prefect-dstack/gateways"
# Where the container sees the gateway's directory.
INSIDE = "/gateway"
LOCK_PATIENCE = 60.0
CANDIDATE = "haproxy.cfg.candidate"
LOGS = types.LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"})
ABSENT = 44

READ = '[ -e "$1" ] || exit 44; exec cat -- "$1"'

# All files are on the disk before the first takes its place; each takes it in one step, in order.
WRITE = r"""
set -e
umask 077
directory=$1; shift
mkdir -p "$directory"
new=$(mktemp -d "$directory/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
(cd "$new" && sync -- "$@" 2>/dev/null || sync)
for name; do
    mkdir -p "$(dirname -- "$directory/$name")"
    mv -f -- "$new/$name" "$directory/$name"
done
"""


class HostPlace:
    """A directory of a host, root's alone, and an HAProxy in a container; implements `Place`.

    HAProxy listens on the host's own network. Nothing but SSH leads to its control sockets.

    Args:
        machine: The host; its user is root, or becomes root by `sudo` without a password.
        gateway: The name of the gateway.
        image: An HAProxy of version 2.8 or later.
    """

    def __init__(self, machine: SshMachine, gateway: str, *, image: str = HAPROXY_IMAGE) -> None:
        self.machine = machine
        self.gateway = gateway
        self.image = image
        self.name = f"gateway '{gateway}' on {machine.name}"
        self.directory = f"{DIRECTORY}/{gateway}"
        self.container_name = f"prefect-dstack-gateway-{gateway}"
        self._root: Root | None = None

    @property
    def root(self) -> Root:
        """The host, as root."""
        if self._root is None:
            self._root = self.machine.root()
        return self._root

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Implement `Place.lock`."""
        with contextlib.ExitStack() as stack:
            lock = self.machine.lock(self._lock_file, wait=LOCK_PATIENCE, prefix=self.root.prefix)
            try:
                stack.enter_context(lock)
            except HostNotReadyError as error:
                raise GatewayError(f"{self.name}: {error}") from error
            yield

    def read(self, name: str) -> bytes | None:
        """Implement `Place.read`."""
        outcome = self.root.run(["sh", "-c", READ, "sh", f"{self.directory}/{name}"])
        if outcome.exit_code == ABSENT:
            return None
        if outcome.exit_code != 0:
            raise GatewayError(f"{self.name}: cannot read {name}: {_words(outcome.stderr)}")
        return outcome.stdout

    def write(self, files: Mapping[str, bytes]) -> None:
        """Implement `Place.write`."""
        outcome = self.root.run(["sh", "-c", WRITE, "sh", self.directory, *files], stdin=_archive(files))
        if outcome.exit_code != 0:
            raise GatewayError(f"{self.name}: cannot write its files: {_words(outcome.stderr)}")

    def remove(self, name: str) -> None:
        """Implement `Place.remove`."""
        files.remove(self.root, [f"{self.directory}/{name}"])

    def check(self, configuration: bytes) -> None:
        """Implement `Place.check`."""
        self.write({CANDIDATE: configuration})
        command = ["haproxy", "-c", "-f", CANDIDATE]
        try:
            with self._explained("check its configuration"):
                exit_code, output = self._run_haproxy(command)
        finally:
            self.remove(CANDIDATE)
        # 2: nothing is wrong but that there is nothing to listen on, as before the first service.
        if exit_code not in (0, 2):
            raise GatewayError(f"{self.name}: HAProxy refuses the configuration: {_alerts(output)}")

    def running(self) -> bool:
        """Implement `Place.running`."""
        with self._explained("look after it"):
            container = self._container()
        return container is not None and container.status in ("running", "restarting")

    def start(self) -> None:
        """Implement `Place.start`."""
        with self._explained("start it"):
            container = self._container()
            if container is None:
                self._ensure_image()
                container = self._create(
                    ["haproxy", "-W", "-db", "-S", f"{INSIDE}/master.sock,mode,600", "-f", "haproxy.cfg"],
                    name=self.container_name,
                    labels={GATEWAY_LABEL: self.gateway},
                    restart_policy={"Name": "unless-stopped"},
                )
            container.start()

    def stop(self) -> None:
        """Implement `Place.stop`."""
        with self._explained("stop it"):
            container = self._container()
            if container is not None:
                container.stop(timeout=5)

    def hold(self, timeout: float) -> Connection:
        """Implement `Place.hold`."""
        return self._connected("measured.sock", timeout)

    def connect(self, timeout: float) -> Connection:
        """Implement `Place.connect`."""
        return self._connected("master.sock", timeout)

    def _connected(self, socket: str, timeout: float) -> Connection:
        try:
            channel = self.machine.open_unix_socket(f"{self.directory}/{socket}", as_root=True)
        except HostError as error:
            raise ConnectionRefusedError(str(error)) from error
        channel.settimeout(timeout)
        return channel

    def log(
        self, *, tail: int | None = None, follow: bool = False, since: datetime | None = None
    ) -> Iterator[str]:
        """Implement `Place.log`."""
        with self._explained("read its log"):
            container = self._container()
            if container is not None:
                yield from container_output(container, tail=tail, follow=follow, since=since)

    def port_is_free(self, port: int, address: str) -> bool:
        """Implement `Place.port_is_free`."""
        table = self.machine.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], idempotent=True).stdout
        return port not in listening_ports(table.decode(errors="replace"))

    def destroy(self) -> None:
        """Implement `Place.destroy`."""
        # Without an engine, there is no container either.
        with self._explained("remove it"), contextlib.suppress(HostNotReadyError):
            container = self._container()
            if container is not None:
                container.remove(force=True, v=True)
        files.remove(self.root, [self.directory, self._lock_file])
        # The directories above go with the last gateway.
        self.root.run(["rmdir", "-p", "--ignore-fail-on-non-empty", DIRECTORY])

    @property
    def _lock_file(self) -> str:
        return f"/run/prefect-dstack-gateway-{self.gateway}.lock"

    def _container(self) -> Container | None:
        try:
            return self.machine.docker().containers.get(self.container_name)
        except errors.NotFound:
            return None

    def _run_haproxy(self, command: list[str]) -> tuple[int, str]:
        """Run HAProxy to its end beside the gateway's files, in its container if that runs."""
        container = self._container()
        if container is not None and container.status == "running":
            outcome = container.exec_run(command, workdir=INSIDE)
            return outcome.exit_code or 0, _text(cast("bytes", outcome.output))
        self._ensure_image()
        container = self._create(command)
        try:
            container.start()
            exit_code = container.wait(timeout=60)["StatusCode"]
            return int(exit_code), _text(container.logs(stream=False))
        finally:
            container.remove(force=True, v=True)

    def _create(self, command: list[str], **more: Any) -> Container:
        return self.machine.docker().containers.create(
            self.image,
            command[1:],
            entrypoint=command[:1],
            network_mode="host",
            user="0:0",
            working_dir=INSIDE,
            volumes={self.directory: {"bind": INSIDE, "mode": "rw"}},
            stop_signal="SIGTERM",
            log_config=LOGS,
            read_only=True,
            cap_drop=["ALL"],
            cap_add=["NET_BIND_SERVICE"],
            security_opt=["no-new-privileges:true"],
            **more,
        )

    def _ensure_image(self) -> None:
        engine = self.machine.docker()
        try:
            engine.images.get(self.image)
        except errors.ImageNotFound:
            try:
                engine.images.pull(self.image)
            except errors.APIError as error:
                raise GatewayError(
                    f"{self.name}: cannot pull {self.image}: {error.explanation or error}: "
                    "let the host reach its registry, or load the image there with `docker load`"
                ) from error

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except errors.APIError as error:
            raise GatewayError(f"{self.name}: cannot {doing}: {error.explanation or error}") from error
        except (errors.DockerException, RequestException) as error:
            raise GatewayError(f"{self.name}: cannot {doing}: {error}") from error


def gateways_on(machine: SshMachine) -> list[str]:
    """List the gateways that a host has.

    Args:
        machine: The host.

    Returns:
        Their names, running or not.

    Raises:
        HostError: If the host cannot be asked.
    """
    containers = machine.docker().containers.list(
        all=True, ignore_removed=True, filters={"label": GATEWAY_LABEL}
    )
    return sorted(container.labels[GATEWAY_LABEL] for container in containers)


def _text(output: bytes) -> str:
    return output.decode(errors="replace")


def _archive(contents: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _words(output: bytes) -> str:
    lines = _text(output).strip().splitlines() or ["no reason given"]
    reason = lines[-1]
    return f"{reason}: free some space on its disk" if "No space left" in reason else reason


def _alerts(output: str) -> str:
    """Pick HAProxy's reasons out of its output, as one line."""
    alerts = [line.split(" : ", 1)[-1].strip() for line in output.splitlines() if line.startswith("[ALERT]")]
    return "; ".join(alerts) or output.strip() or "it gave no reason"
