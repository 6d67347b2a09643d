"""An SSH server for one client on a pair of pipes, whose sessions are programs in a replica.

It stands behind a `ProxyCommand`, so that `ssh` and editors enter what has no SSH server and no way to it but
its engine's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.runtimes.entering import Entrance, Session, Terminal

__all__ = ["PipePair", "SshServer"]

logger = logging.getLogger(__name__)

CHUNK = 65536
POLL = 0.5
LANGUAGES = ("LANG", "LC_", "COLORTERM")
# Where distributions put it.
SFTP = """
for program in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server \
        /usr/libexec/sftp-server /usr/lib/sftp-server; do
    if [ -x "$program" ]; then exec "$program"; fi
done
echo "there is no sftp-server here: install openssh-sftp-server" >&2
exit 127
"""
CANNOT_START = 126


class PipePair:
    """Two pipes that look like a socket to paramiko.

    Args:
        incoming: The file descriptor to read from.
        outgoing: The file descriptor to write to.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._timeout: float | None = None

    def settimeout(self, timeout: float | None) -> None:
        """Set how many seconds `recv` waits; None: for ever."""
        self._timeout = timeout

    def recv(self, size: int) -> bytes:
        """Receive some bytes; none at the end."""
        if not select.select([self._incoming], [], [], self._timeout)[0]:
            raise TimeoutError
        return os.read(self._incoming, size)

    def send(self, data: bytes) -> int:
        """Send some bytes, and return how many."""
        return os.write(self._outgoing, data)

    def close(self) -> None:
        """Do nothing: the pipes end with this process."""


@dataclass
class _Asked:
    """What a client has asked for on one channel before its program starts."""

    terminal: Terminal | None = None
    environment: dict[str, str] = field(default_factory=dict)
    started: bool = False
    session: Session | None = None
    # Held, since paramiko itself does not keep it.
    channel: paramiko.Channel | None = None


class SshServer(paramiko.ServerInterface):
    """Serves one client until it leaves.

    Args:
        entrance: The replica that it enters.
        client_key: The one public key that is let in.
    """

    def __init__(self, entrance: Entrance, client_key: paramiko.PKey) -> None:
        self._entrance = entrance
        self._client_key = client_key
        self._asked: dict[int, _Asked] = {}
        self._connected: dict[int, socket.socket] = {}
        self._lock = threading.Lock()

    def serve(self, pipes: PipePair, host_key: paramiko.PKey, goes_on: Callable[[], bool]) -> None:
        """Serve the client.

        Args:
            pipes: Lead to the client.
            host_key: What the server shows.
            goes_on: Asked again and again; once it says no, the client is disconnected.
        """
        transport = paramiko.Transport(pipes)  # type: ignore[arg-type]
        transport.add_server_key(host_key)
        try:
            transport.start_server(server=self)
            while transport.is_active() and goes_on():
                channel = transport.accept(POLL)
                if channel is not None:
                    self._take(channel)
        except paramiko.SSHException as error:
            logger.debug("The client has left: %s", error)
        finally:
            transport.close()
            with self._lock:
                asked = list(self._asked.values())
            for one in asked:
                if one.session is not None:
                    one.session.close()

    def get_allowed_auths(self, username: str) -> str:
        """Return how a client may prove who it is."""
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Accept whoever has our client key, under any name."""
        return AUTH_SUCCESSFUL if key == self._client_key else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Open a channel for a session."""
        if kind != "session":
            return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        with self._lock:
            self._asked[chanid] = _Asked()
        return OPEN_SUCCEEDED

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        """Accept a variable that describes the client's terminal or locale."""
        text = name.decode(errors="replace")
        if not text.startswith(LANGUAGES):
            return False
        asked = self._asked_on(channel)
        if asked is not None:
            asked.environment[text] = value.decode(errors="replace")
        return asked is not None

    def check_channel_pty_request(
        self,
        channel: paramiko.Channel,
        term: bytes,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
        modes: bytes,
    ) -> bool:
        """Allocate a terminal for the session."""
        asked = self._asked_on(channel)
        if asked is not None:
            asked.terminal = Terminal(term.decode(errors="replace") or "dumb", width, height)
        return asked is not None

    def check_channel_window_change_request(
        self, channel: paramiko.Channel, width: int, height: int, pixelwidth: int, pixelheight: int
    ) -> bool:
        """Change the size of the session's terminal."""
        asked = self._asked_on(channel)
        if asked is not None and asked.session is not None:
            asked.session.resize(width, height)
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        """Start a shell."""
        return self._start(channel, "")

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Start a command."""
        return self._start(channel, command.decode(errors="surrogateescape"))

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        """Start the server of SFTP; there are no other subsystems."""
        return name == "sftp" and self._start(channel, SFTP)

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        """Connect to a port as a program in the replica would."""
        try:
            there = self._entrance.open_connection(*destination)
        except (OSError, PrefectDstackError) as error:
            logger.debug("%s:%s does not answer: %s", *destination, error)
            return OPEN_FAILED_CONNECT_FAILED
        there.settimeout(None)
        self._connected[chanid] = there
        return OPEN_SUCCEEDED

    def _asked_on(self, channel: paramiko.Channel) -> _Asked | None:
        with self._lock:
            return self._asked.get(channel.get_id())

    def _take(self, channel: paramiko.Channel) -> None:
        there = self._connected.pop(channel.get_id(), None)
        if there is not None:
            _Carried(channel, there).start()
            return
        asked = self._asked_on(channel)
        if asked is not None:
            asked.channel = channel

    def _start(self, channel: paramiko.Channel, command: str) -> bool:
        asked = self._asked_on(channel)
        if asked is None or asked.started:
            return False
        asked.started = True
        # The client is answered only after this has returned.
        threading.Thread(target=self._run, args=(channel, asked, command), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, asked: _Asked, command: str) -> None:
        code = CANNOT_START
        with contextlib.suppress(OSError, EOFError), channel:
            try:
                session = self._entrance.enter(command, asked.terminal, asked.environment)
            except (OSError, ValueError, PrefectDstackError) as error:
                channel.sendall_stderr(f"prefect-dstack: {error}\r\n".encode())
                channel.send_exit_status(code)
                return
            asked.session = session
            threading.Thread(target=_feed, args=(channel, session), daemon=True).start()
            try:
                session.copy_output(channel.sendall, channel.sendall_stderr)
                code = session.exit_code()
            finally:
                session.close()
            channel.send_exit_status(code)
            channel.shutdown_write()
        with self._lock:
            self._asked.pop(channel.get_id(), None)


def _feed(channel: paramiko.Channel, session: Session) -> None:
    """Pass on what the client types; one that leaves a program on a terminal hangs up on it."""
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv(CHUNK):
            session.write(data)
    if channel.closed:
        session.close()
    else:
        session.end_input()


class _Carried:
    """A connection between the client and a port of the replica, each direction carried by a thread."""

    def __init__(self, channel: paramiko.Channel, there: socket.socket) -> None:
        self._channel, self._there = channel, there
        self._lock = threading.Lock()
        self._open = 2

    def start(self) -> None:
        for ends in ((self._channel, self._there), (self._there, self._channel)):
            threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: paramiko.Channel | socket.socket, sink: paramiko.Channel | socket.socket) -> None:
        broken = True
        with contextlib.suppress(OSError, EOFError):
            while data := source.recv(CHUNK):
                sink.sendall(data)
            broken = source is self._channel and self._channel.closed
            sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._open -= 1
            over = broken or self._open == 0
        if over:
            self._channel.close()
            with contextlib.suppress(OSError):
                self._there.shutdown(socket.SHUT_RDWR)
            self._there.close()
