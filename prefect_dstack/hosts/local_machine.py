"""The machine that this code runs on."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect_dstack.errors import HostNotReadyError, HostUnreachableError
from prefect_dstack.hosts import ports
from prefect_dstack.hosts.machine import CommandResult

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["LocalMachine"]

USUAL_ENGINE = "unix:///var/run/docker.sock"


class LocalMachine:
    """The machine that this code runs on; implements `DockerHost`.

    Args:
        identity: Tells its replicas from those of others that use the same Docker Engine; None: all count.
    """

    name = "this machine"
    publish_address = "127.0.0.1"
    engine_optional = True

    def __init__(self, identity: str | None = None) -> None:
        self.identity = identity

    def docker(self) -> DockerClient:
        """Reach the Docker Engine that `DOCKER_HOST` names, else the one at the usual socket."""
        return _engine(os.environ.get("DOCKER_HOST"))

    def run(
        self, command: Sequence[str], *, stdin: bytes | None = None, timeout: float = 60.0
    ) -> CommandResult:
        """Run a command here; see `Machine.run`."""
        try:
            outcome = subprocess.run(
                list(command), input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except FileNotFoundError:
            return CommandResult(127, b"", f"{command[0]}: not found".encode())
        except OSError as error:
            return CommandResult(126, b"", f"{command[0]}: {error.strerror}".encode())
        except subprocess.TimeoutExpired as error:
            raise HostUnreachableError(f"{command[0]} did not end within {timeout:g} s") from error
        return CommandResult(outcome.returncode, outcome.stdout, outcome.stderr)

    def connect(self, address: str, port: int, *, timeout: float = 5.0) -> socket.socket:
        """Open a TCP connection; see `Machine.connect`."""
        return socket.create_connection((address, port), timeout=timeout)

    def free_port(self) -> int:
        """Find a free port here; see `Machine.free_port`."""
        return ports.free_port(self.publish_address)


@functools.cache
def _engine(host: str | None) -> DockerClient:
    # The SDK takes half a second to import, which whoever has no containers need not pay.
    from docker import errors, from_env

    try:
        _try_socket((host or USUAL_ENGINE).removeprefix("unix://"))
        client = from_env(timeout=60)
        client.ping()
    except (errors.DockerException, OSError) as error:
        if shutil.which("docker") or shutil.which("dockerd"):
            remedy = "start it, or set DOCKER_HOST to where it listens; your user must be allowed to use it"
        else:
            remedy = "install Docker, or leave `image` out to run the commands as processes"
        raise HostNotReadyError(f"no Docker Engine answers on this machine: {remedy}") from error
    return client


def _try_socket(path: str) -> None:
    """Fail where nobody listens, as the Docker SDK does, but without leaving a socket behind."""
    if path.startswith("/"):
        with socket.socket(socket.AF_UNIX) as attempt:
            attempt.connect(path)
