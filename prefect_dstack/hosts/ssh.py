"""One SSH connection to a host, shared by all threads, made anew when it was lost."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import paramiko

from prefect_dstack.errors import HostUnreachableError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.commands import ConnectionLostError, exchange
from prefect_dstack.hosts.host_keys import HostKey
from prefect_dstack.hosts.machine import CommandResult
from prefect_dstack.hosts.ssh_config import Resolved, resolve
from prefect_dstack.hosts.transport import CHANNEL_TIMEOUT, NoAnswerError, Transport, open_transport

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["ChannelRefusedError", "Connection"]

# paramiko logs what it raises, with tracebacks; we report it once, in our own words.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

# A host that has not answered is not tried again for so many seconds: each of the many who ask for it
# would wait as long as the first.
SILENCE = 15.0


class ChannelRefusedError(Exception):
    """The host is connected and refuses this one channel."""


class Connection:
    """The connection to one host.

    Args:
        access: How it is reached.
        name: What messages call it; default: its host name.
        jump: The connection to the host before it, if there is one.

    Attributes:
        jump: The connection to the host before it, if there is one.
        opened: How often it was made.
        engine: The client of the host's Docker Engine, once somebody has asked for it.
        queues: Where threads of this process wait for locks on the host, by the lock's path.
    """

    def __init__(self, access: SshAccess, name: str | None = None, jump: Connection | None = None) -> None:
        self.access = access
        self.name = name or access.hostname
        self.jump = jump
        self.opened = 0
        self.engine: DockerClient | None = None
        self.engine_lock = threading.Lock()
        self.queues: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._connecting: Future[Transport] | None = None
        self._resolved: Resolved | None = None
        self._silent: tuple[float, NoAnswerError] | None = None

    @property
    def resolved(self) -> Resolved:
        """Where the host is, with everything that `~/.ssh/config` adds."""
        if self._resolved is None:
            self._resolved = resolve(self.access)
        return self._resolved

    @property
    def place(self) -> str:
        """The host as messages name it: `gpu-1 (10.0.0.5:22)`."""
        resolved = self.resolved
        address = f"[{resolved.hostname}]" if ":" in resolved.hostname else resolved.hostname
        return f"{self.name} ({address}:{resolved.port})"

    def connect(self) -> Transport:
        """Return the live transport; of many threads that find none, one connects and the others wait.

        Returns:
            A transport that is logged in.

        Raises:
            HostError: If it cannot be had.
        """
        with self._lock:
            if self._transport is not None and self._transport.is_active():
                return self._transport
            if self._silent is not None and time.monotonic() - self._silent[0] < SILENCE:
                raise NoAnswerError(str(self._silent[1]))
            others = self._connecting
            if others is None:
                connecting = self._connecting = Future()
        if others is not None:
            return others.result()
        try:
            transport = self._open()
        except BaseException as error:
            with self._lock:
                self._connecting = None
                self._silent = (time.monotonic(), error) if isinstance(error, NoAnswerError) else None
            connecting.set_exception(error)
            raise
        with self._lock:
            self._transport, self._connecting = transport, None
            self.opened += 1
        connecting.set_result(transport)
        return transport

    def _open(self) -> Transport:
        jump, resolved = self.jump, self.resolved
        if jump is None:
            return open_transport(self.place, self.access, resolved, None)

        def dial() -> paramiko.Channel:
            try:
                return jump.open_tcp(resolved.hostname, resolved.port)
            except ChannelRefusedError as error:
                raise HostUnreachableError(
                    f"{self.place}: {jump.name} does not get through to it: {error}"
                ) from error

        return open_transport(self.place, self.access, resolved, dial)

    def close(self) -> None:
        """Disconnect; a later use connects again."""
        with self._lock:
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def host_key(self) -> HostKey:
        """Return the key that the host has shown, and that was found to be the right one.

        Raises:
            HostError: If it cannot be connected.
        """
        key = self.connect().get_remote_server_key()
        return HostKey(key.get_name(), key.asbytes())

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout: float = 60.0,
        idempotent: bool = False,
    ) -> CommandResult:
        """Run a command on the host.

        Args:
            command: The program and its arguments; the host's shell sees them quoted.
            stdin: What it reads from its standard input.
            timeout: Seconds after which it is given up.
            idempotent: Whether it may be run a second time if the connection is lost meanwhile.

        Returns:
            Its exit code and output.

        Raises:
            HostUnreachableError: If the host does not answer, or not in time.
        """
        deadline = time.monotonic() + timeout
        for last in (not idempotent, True):
            channel = self.open_session()
            try:
                return exchange(channel, command, stdin, deadline)
            except TimeoutError as error:
                raise HostUnreachableError(
                    f"{self.place}: `{command[0]}` did not end within {timeout:g} s"
                ) from error
            except ConnectionLostError as error:
                self._forget_if_dead()
                if last:
                    raise HostUnreachableError(
                        f"{self.place}: the connection was lost while `{command[0]}` ran"
                    ) from error
            finally:
                channel.close()
        raise AssertionError  # pragma: no cover

    def open_session(self) -> paramiko.Channel:
        """Open a channel for a command.

        A host allows only so many at a time on a connection (`MaxSessions`, 10 by default): when it has
        no more to give, wait for one.

        Returns:
            The channel.

        Raises:
            HostUnreachableError: If there is none to be had.
        """
        deadline = time.monotonic() + 60.0
        pause = 0.02
        while True:
            try:
                return self._channel(lambda transport: transport.open_session(timeout=CHANNEL_TIMEOUT))
            except ChannelRefusedError as error:
                if time.monotonic() > deadline:
                    raise HostUnreachableError(
                        f"{self.place}: it opens no further session ({error}): raise MaxSessions in its "
                        "sshd_config, or wait until others have finished"
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, 0.5)

    def open_tcp(self, address: str, port: int) -> paramiko.Channel:
        """Connect from the host to a TCP port.

        Args:
            address: As the host sees it.
            port: The port there.

        Returns:
            The channel.

        Raises:
            ChannelRefusedError: If nothing listens there, or the host does not forward.
            HostUnreachableError: If the host does not answer.
        """
        return self._channel(
            lambda transport: transport.open_channel(
                "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=CHANNEL_TIMEOUT
            )
        )

    def open_unix(self, path: str) -> paramiko.Channel:
        """Connect to a unix socket of the host, with the rights of the user we are there.

        Args:
            path: Its absolute path.

        Returns:
            The channel.

        Raises:
            ChannelRefusedError: If nothing listens there, or the host does not forward.
            HostUnreachableError: If the host does not answer.
        """
        return self._channel(lambda transport: transport.open_unix_socket(path, CHANNEL_TIMEOUT))

    def _channel(self, opener: Callable[[Transport], paramiko.Channel]) -> paramiko.Channel:
        """Open a channel, on a new connection if the one we have turns out to be dead."""
        for last in (False, True):
            transport = self.connect()
            try:
                return opener(transport)
            except paramiko.ChannelException as error:
                raise ChannelRefusedError(error.text) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                timed_out = "Timeout" in str(error)
                if transport.is_active() and not timed_out:
                    # Two threads that are refused at the same time find one ChannelException between them.
                    raise ChannelRefusedError(str(error)) from error
                with self._lock:
                    if self._transport is transport:
                        self._transport = None
                transport.close()
                if last:
                    raise HostUnreachableError(f"{self.place}: the connection was lost ({error})") from error
        raise AssertionError  # pragma: no cover

    def _forget_if_dead(self) -> None:
        with self._lock:
            if self._transport is not None and not self._transport.is_active():
                self._transport = None
