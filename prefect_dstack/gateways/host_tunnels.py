"""Tunnels of a gateway on a host: each an `ssh` in a container that its Docker Engine keeps running."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from docker import errors, types
from requests import RequestException

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.host import HAPROXY_IMAGE
from prefect_dstack.gateways.tunnels import HeldTunnel, TunnelTarget, ssh_command, ssh_files
from prefect_dstack.hosts import files
from prefect_dstack.hosts.ssh import Connection
from prefect_dstack.hosts.ssh_machine import Root, SshMachine

if TYPE_CHECKING:
    from docker.models.containers import Container

__all__ = ["HostTunnels", "tunnels_on"]

DIRECTORY = "/var/lib/prefect-dstack/tunnels"
# Stamps of replicas are found by the labels `prefect-dstack.service` and so on: a tunnel is no replica.
SEPARATOR = ".tunnel."
GATEWAY_LABEL = "prefect-dstack.tunnel.gateway"
PORT_LABEL = "prefect-dstack.tunnel.port"
TARGET_LABEL = "prefect-dstack.tunnel.target"
LOGS = types.LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"})

# The host's own `ssh`, and a gateway's image only for the sake of the engine's restart policy. Trying again
# every second here heals faster than that policy, which waits longer each time.
LOOP = 'exec chroot /host /bin/sh -c \'while :; do "$@"; sleep 1; done\' sh "$@"'

MAKE_KEY = r"""
umask 077
mkdir -p "$1" || exit 1
[ -e "$1/key.pub" ] || {
    rm -f "$1/key" && ssh-keygen -q -t ed25519 -N '' -C prefect-dstack -f "$1/key" >&2 || exit 1
}
cat "$1/key.pub"
"""


class HostTunnels:
    """Holds the tunnels of a gateway on a host; implements `TunnelHolder`.

    Args:
        machine: The gateway's host; its user is root, or becomes root by `sudo` without a password.
        gateway: The name of the gateway.
        image: An image that the host has, of which only `sh` and `chroot` are used.
    """

    def __init__(self, machine: SshMachine, gateway: str, *, image: str = HAPROXY_IMAGE) -> None:
        self.machine = machine
        self.gateway = gateway
        self.image = image
        self._root: Root | None = None

    @property
    def connection(self) -> Connection:
        """The connection to the gateway's host."""
        return self.machine.connection

    @property
    def root(self) -> Root:
        """The host, as root."""
        if self._root is None:
            self._root = self.machine.root()
        return self._root

    def make_key(self, stamp: Stamp) -> str:
        """Create a key there; see `TunnelHolder.make_key`."""
        outcome = self.root.run(["sh", "-c", MAKE_KEY, "sh", self._directory(stamp)])
        if outcome.exit_code != 0:
            reason = outcome.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise GatewayError(
                f"{self.machine.name}: cannot make a key for a tunnel: {reason[0]}: "
                "it needs OpenSSH's client and a disk with some space"
            )
        return outcome.stdout.decode().strip()

    def hold(self, stamp: Stamp, target: TunnelTarget) -> int:
        """Hold a tunnel in a container; see `TunnelHolder.hold`."""
        wanted = json.dumps(asdict(target), sort_keys=True)
        with self._explained("hold a tunnel"):
            container = self._container(stamp)
            if container is not None and container.labels.get(TARGET_LABEL) != wanted:
                container.remove(force=True, v=True)
                container = None
            if container is None:
                port = self.machine.free_port()
                directory = self._directory(stamp)
                for name, data in ssh_files(directory, port, target).items():
                    files.write_file(self.root, f"{directory}/{name}", data)
                container = self._create(stamp, port, wanted)
            container.start()
            return int(container.labels[PORT_LABEL])

    def held(self) -> Sequence[HeldTunnel]:
        """List the tunnels; see `TunnelHolder.held`."""
        return [held for gateway, held in tunnels_on(self.machine) if gateway == self.gateway]

    def let_go(self, stamp: Stamp) -> None:
        """End a tunnel; see `TunnelHolder.let_go`."""
        with self._explained("end a tunnel"):
            container = self._container(stamp)
            if container is not None:
                container.remove(force=True, v=True)
        files.remove(self.root, [self._directory(stamp)])
        # The directories above go with the last tunnel.
        self.root.run(["rmdir", "-p", "--ignore-fail-on-non-empty", f"{DIRECTORY}/{self.gateway}"])

    def log(self, stamp: Stamp) -> str:
        """Read what `ssh` has said; see `TunnelHolder.log`."""
        with self._explained("read the log of a tunnel"):
            container = self._container(stamp)
            return "" if container is None else container.logs(tail=20).decode(errors="replace").strip()

    def _directory(self, stamp: Stamp) -> str:
        return f"{DIRECTORY}/{self.gateway}/{stamp.name}"

    def _container_name(self, stamp: Stamp) -> str:
        return f"prefect-dstack-tunnel-{self.gateway}-{stamp.name}"

    def _container(self, stamp: Stamp) -> Container | None:
        try:
            return self.machine.docker().containers.get(self._container_name(stamp))
        except errors.NotFound:
            return None

    def _create(self, stamp: Stamp, port: int, target: str) -> Container:
        restart: Any = {"Name": "unless-stopped"}
        try:
            return self.machine.docker().containers.create(
                self.image,
                ["-c", LOOP, "sh", *ssh_command(self._directory(stamp))],
                entrypoint=["/bin/sh"],
                name=self._container_name(stamp),
                labels={
                    **stamp.labels(SEPARATOR),
                    GATEWAY_LABEL: self.gateway,
                    PORT_LABEL: str(port),
                    TARGET_LABEL: target,
                },
                restart_policy=restart,
                network_mode="host",
                user="0:0",
                volumes={"/": {"bind": "/host", "mode": "ro"}},
                log_config=LOGS,
                init=True,
                read_only=True,
                cap_drop=["ALL"],
                cap_add=["SYS_CHROOT"],
                security_opt=["no-new-privileges:true"],
            )
        except errors.ImageNotFound as error:
            raise GatewayError(
                f"{self.machine.name}: the image {self.image} is not there: start the gateway first"
            ) from error

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except errors.APIError as error:
            reason = error.explanation or error
            raise GatewayError(
                f"gateway '{self.gateway}' on {self.machine.name}: cannot {doing}: {reason}"
            ) from error
        except (errors.DockerException, RequestException) as error:
            raise GatewayError(
                f"gateway '{self.gateway}' on {self.machine.name}: cannot {doing}: {error}"
            ) from error


def tunnels_on(machine: SshMachine) -> list[tuple[str, HeldTunnel]]:
    """List the tunnels that a host holds, of whichever gateway.

    Args:
        machine: The host.

    Returns:
        The gateway and the tunnel of each.

    Raises:
        HostError: If the host cannot be asked.
    """
    containers = machine.docker().containers.list(
        all=True, ignore_removed=True, filters={"label": GATEWAY_LABEL}
    )
    found = []
    for container in containers:
        stamp = Stamp.from_labels(container.labels, SEPARATOR)
        if stamp is not None:
            port = int(container.labels[PORT_LABEL])
            found.append((container.labels[GATEWAY_LABEL], HeldTunnel(stamp=stamp, port=port)))
    return found
