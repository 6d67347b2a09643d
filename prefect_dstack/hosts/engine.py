"""The Docker Engine of a host, through the Docker SDK over the host's SSH connection.

The engine's socket is reached by a forwarded channel, which costs the host no process and does not count
against its `MaxSessions`. Where the user may not open the socket, or the host forwards none, each HTTP
connection is one `docker system dial-stdio` instead, with `sudo -n` if that is what it takes.
"""

from __future__ import annotations

import queue
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paramiko
import requests
import urllib3
from docker import DockerClient
from docker.constants import DEFAULT_DOCKER_API_VERSION
from docker.errors import DockerException
from docker.transport.basehttpadapter import BaseHTTPAdapter

from prefect_dstack.errors import HostNotReadyError, HostUnreachableError
from prefect_dstack.hosts.ssh import ChannelRefusedError, Connection
from prefect_dstack.hosts.transport import is_lost

__all__ = ["docker_engine"]

REQUEST_TIMEOUT = 60
# Any version that the SDK knows: what the engine speaks is asked once we are connected.
FIRST_VERSION = DEFAULT_DOCKER_API_VERSION

# Says in one line how this user reaches the engine. Rootless engines listen in the user's own directory.
FIND = """
own=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/docker.sock
for socket in "${DOCKER_HOST#unix://}" "$own" /var/run/docker.sock; do
    if [ -S "$socket" ] && [ -r "$socket" ] && [ -w "$socket" ]; then echo "socket $socket"; exit; fi
done
if ! command -v docker >/dev/null 2>&1 && ! [ -S /var/run/docker.sock ]; then echo "absent"
elif [ "$(id -u)" != 0 ] && sudo -n docker version >/dev/null 2>&1; then echo "sudo"
elif [ -S /var/run/docker.sock ]; then echo "denied $(id -un)"
else echo "stopped"; fi
"""

# Of the 10 sessions that a host allows by default, leave some for commands.
MOST_SESSIONS = 6
MOST_IDLE_SOCKETS = 50


@dataclass(frozen=True)
class _Way:
    """How this user gets to the engine.

    Attributes:
        place: The host, for messages.
        dial: Opens a channel to it.
        sessions: Whether each channel is one of the few sessions that the host allows.
    """

    place: str
    dial: Callable[[], paramiko.Channel]
    sessions: bool


def docker_engine(connection: Connection) -> DockerClient:
    """Reach a host's Docker Engine.

    Args:
        connection: To the host.

    Returns:
        A client that all threads share; it survives a lost connection.

    Raises:
        HostNotReadyError: If there is no engine, or this user may not use it.
        HostUnreachableError: If the host does not answer.
    """
    with connection.engine_lock:
        if connection.engine is None:
            connection.engine = _connect(connection)
        return connection.engine


def _connect(connection: Connection) -> DockerClient:
    # With a version given, the constructor asks nobody, and its address is never used.
    client = DockerClient(base_url="tcp://ssh:1", version=FIRST_VERSION, timeout=REQUEST_TIMEOUT)
    api = client.api
    api.trust_env = False
    api.mount("http+docker://", _Adapter(connection, _find(connection)))
    # The SDK tells by this address how it gets at the socket of an attached stream.
    api.base_url = "http+docker://ssh"
    try:
        # The SDK sets this in its constructor only, which cannot know our adapter yet.
        vars(api)["_version"] = api.version(api_version=False)["ApiVersion"]
    except (DockerException, HostUnreachableError, requests.RequestException) as error:
        connection.connect()
        raise HostNotReadyError(
            f"{connection.place}: its Docker Engine does not answer ({error}): "
            "`sudo systemctl restart docker` there"
        ) from error
    return client


def _find(connection: Connection) -> _Way:
    found = connection.run(["sh", "-c", FIND], timeout=30, idempotent=True).stdout.decode(errors="replace")
    how, _, what = found.strip().partition(" ")
    if how == "socket":
        return _way_to_socket(connection, what)
    if how == "sudo":
        return _Way(connection.place, lambda: _dial_stdio(connection, "sudo", "-n"), sessions=True)
    remedies = {
        "absent": "has no Docker: install it there (`curl -fsSL https://get.docker.com | sh`)",
        "stopped": "its Docker Engine is not running: start it there (`sudo systemctl enable --now docker`)",
        "denied": f"the user `{what}` may not use its Docker Engine: `sudo usermod -aG docker {what}` there, "
        "allow it `sudo` without a password, or log in as root",
    }
    raise HostNotReadyError(f"{connection.place}: {remedies.get(how, 'cannot look for its Docker Engine')}")


def _way_to_socket(connection: Connection, path: str) -> _Way:
    try:
        connection.open_unix(path).close()
    except ChannelRefusedError:
        # A host that forwards no sockets says the same as one whose engine does not listen.
        return _Way(connection.place, lambda: _dial_stdio(connection), sessions=True)

    def dial() -> paramiko.Channel:
        try:
            return connection.open_unix(path)
        except ChannelRefusedError as error:
            raise HostNotReadyError(
                f"{connection.place}: its Docker Engine does not listen at {path}: "
                "`sudo systemctl restart docker` there"
            ) from error

    return _Way(connection.place, dial, sessions=False)


def _dial_stdio(connection: Connection, *prefix: str) -> paramiko.Channel:
    channel = connection.open_session()
    channel.exec_command(shlex.join([*prefix, "docker", "system", "dial-stdio"]))
    return channel


class _LostError(HostUnreachableError):
    """The connection to the host ended while the engine was answering."""


class _Answer(paramiko.ChannelFile):
    """What comes from the engine; its end is told from that of the connection, which a stream may not be."""

    place = ""

    def _read(self, size: int) -> bytes:
        data = self.channel.recv(size)
        if not data and is_lost(self.channel):
            raise _LostError(f"{self.place}: the connection was lost while its Docker Engine answered")
        return data


class _HTTPConnection(urllib3.connection.HTTPConnection):
    def __init__(self, way: _Way) -> None:
        super().__init__("localhost", timeout=REQUEST_TIMEOUT)
        self._way = way

    def connect(self) -> None:
        channel = self._way.dial()
        channel.settimeout(REQUEST_TIMEOUT)

        def answer(mode: str = "rb", buffering: int = -1) -> _Answer:
            file = _Answer(channel, mode, buffering)
            file.place = self._way.place
            return file

        vars(channel)["makefile"] = answer
        self.sock = channel


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    def __init__(self, way: _Way) -> None:
        size = MOST_SESSIONS if way.sessions else MOST_IDLE_SOCKETS
        super().__init__("localhost", timeout=REQUEST_TIMEOUT, maxsize=size, block=way.sessions)
        self._way = way

    def _new_conn(self) -> Any:
        return _HTTPConnection(self._way)

    def _get_conn(self, timeout: float | None = None) -> Any:
        """Return an idle connection that is still open; urllib3 would need a file descriptor to know."""
        if self.pool is None:
            raise urllib3.exceptions.ClosedPoolError(self, "the connection was closed")
        try:
            idle = self.pool.get(block=self.block, timeout=timeout or REQUEST_TIMEOUT)
        except queue.Empty:
            if self.block:
                raise urllib3.exceptions.EmptyPoolError(self, "all its sessions are in use") from None
            idle = None
        if idle is None:
            return self._new_conn()
        if idle.sock is not None and (idle.sock.closed or idle.sock.eof_received):
            idle.close()
        return idle


class _Adapter(BaseHTTPAdapter):
    """Sends the SDK's requests over channels of the connection."""

    def __init__(self, connection: Connection, way: _Way) -> None:
        super().__init__()
        self._connection = connection
        self._pool = _Pool(way)

    def get_connection(self, url: str | bytes, proxies: Mapping[str, str] | None = None) -> Any:
        return self._pool

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; one that only reads is sent again if the connection was lost before its answer."""
        try:
            return super().send(request, *args, **kwargs)
        except (requests.ConnectionError, _LostError) as error:
            if request.method not in ("GET", "HEAD"):
                raise self._lost(error) from error
        try:
            return super().send(request, *args, **kwargs)
        except (requests.ConnectionError, _LostError) as error:
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> HostUnreachableError:
        while error.__context__ is not None:
            error = error.__context__
        reason = str(error) or type(error).__name__
        return HostUnreachableError(
            f"{self._connection.place}: lost the connection to its Docker Engine ({reason})"
        )

    def close(self) -> None:
        super().close()
        self._pool.close()
