"""Tunnels of the gateway on this machine: each an `ssh` that a supervisor keeps running."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.tunnels import HeldTunnel, TunnelTarget, ssh_command, ssh_files
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.ports import free_port

__all__ = ["LocalTunnels"]

LOG_TAIL = 2000
# `ssh` ends as soon as it has lost its peer: to try again every second heals fast, and costs little.
LOOP = 'while :; do "$@"; sleep 1; done'


class LocalTunnels:
    """Holds the tunnels of the gateway on this machine; implements `TunnelHolder`.

    Args:
        directory: Where their keys and supervisors are, this user's alone.
        gateway: The name of the gateway.
    """

    def __init__(self, directory: Path, gateway: str = "local") -> None:
        self.directory = directory
        self.gateway = gateway
        self.connection = None

    def make_key(self, stamp: Stamp) -> str:
        """Create a key here; see `TunnelHolder.make_key`."""
        directory = self._of(stamp)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        public = directory / "key.pub"
        if not public.exists():
            (directory / "key").unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "prefect-dstack"]
            try:
                outcome = subprocess.run(
                    [*command, "-f", str(directory / "key")], capture_output=True, timeout=30, check=False
                )
            except FileNotFoundError as error:
                raise GatewayError(
                    "this machine has no ssh-keygen: install OpenSSH's client for tunnels to hosts"
                ) from error
            if outcome.returncode != 0:
                reason = outcome.stderr.decode(errors="replace").strip()
                raise GatewayError(f"cannot make a key for a tunnel in {directory}: {reason}")
        return public.read_text().strip()

    def hold(self, stamp: Stamp, target: TunnelTarget) -> int:
        """Hold a tunnel under a supervisor; see `TunnelHolder.hold`."""
        directory = self._of(stamp)
        record = directory / "tunnel.json"
        # As it is read back: JSON has no tuples.
        wanted = json.loads(json.dumps({"target": asdict(target), "stamp": stamp.model_dump(mode="json")}))
        known = json.loads(record.read_text()) if record.exists() else {}
        port = int(known.pop("port", 0))
        if known != wanted:
            supervisor.stop(directory / "ssh")
            port = free_port()
            for name, data in ssh_files(str(directory), port, target).items():
                (directory / name).write_bytes(data)
            record.write_text(json.dumps({**wanted, "port": port}))
        supervisor.start(
            directory / "ssh",
            supervisor.Program(
                arguments=["/bin/sh", "-c", LOOP, "sh", *ssh_command(str(directory))],
                environment=_environment(target),
                working_directory=directory,
                log_bytes=100_000,
                log_files=1,
            ),
        )
        return port

    def held(self) -> Sequence[HeldTunnel]:
        """List the tunnels; see `TunnelHolder.held`."""
        found = []
        for record in sorted(self.directory.glob("*/tunnel.json")):
            known = json.loads(record.read_text())
            found.append(HeldTunnel(stamp=Stamp.model_validate(known["stamp"]), port=known["port"]))
        return found

    def let_go(self, stamp: Stamp) -> None:
        """End a tunnel; see `TunnelHolder.let_go`."""
        directory = self._of(stamp)
        supervisor.stop(directory / "ssh", grace=2.0)
        shutil.rmtree(directory, ignore_errors=True)

    def log(self, stamp: Stamp) -> str:
        """Read what `ssh` has said; see `TunnelHolder.log`."""
        output = self._of(stamp) / "ssh" / "output.log"
        return output.read_text(errors="replace")[-LOG_TAIL:].strip() if output.exists() else ""

    def _of(self, stamp: Stamp) -> Path:
        return self.directory.absolute() / stamp.name


def _environment(target: TunnelTarget) -> dict[str, str]:
    # A command of the user's finds its account, profile and proxy in the environment.
    if any(hop.proxy_command is not None for hop in (*target.jumps, target)):
        return dict(os.environ)
    return {"PATH": os.environ.get("PATH", os.defpath)}
