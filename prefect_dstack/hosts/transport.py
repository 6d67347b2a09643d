"""One authenticated SSH transport: connect, check the host key, log in."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from prefect_dstack.errors import HostAuthenticationError, HostKeyError, HostUnreachableError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.host_keys import HostKey, TrustedKeys, trusted_keys
from prefect_dstack.hosts.keys import LockedKeyError, read_private_key, read_private_key_file
from prefect_dstack.hosts.proxy_command import ProxySocket
from prefect_dstack.hosts.ssh_config import Resolved

__all__ = [
    "CHANNEL_TIMEOUT",
    "CONNECT_TIMEOUT",
    "NoAnswerError",
    "Transport",
    "is_dead",
    "is_lost",
    "open_transport",
]

CONNECT_TIMEOUT = 10.0
BANNER_TIMEOUT = 15.0
LOGIN_TIMEOUT = 20.0
CHANNEL_TIMEOUT = 15.0
KEEPALIVE = 15
LAST_MOMENT = 0.2
# With a keepalive every 15 s, a peer that acknowledges nothing for this long is gone.
UNACKNOWLEDGED = 30.0
TCP_RXT_CONNDROPTIME = 0x80  # macOS's name for what Linux calls TCP_USER_TIMEOUT, in seconds

GREETING = "greeting"

Dial = Callable[[], socket.socket | paramiko.Channel]


class NoAnswerError(HostUnreachableError):
    """Nothing came back at all: the host is off, or somewhere between packets are lost."""


class Transport(paramiko.Transport):
    """paramiko's transport, with channels to the host's unix sockets."""

    def __init__(self, sock: socket.socket | paramiko.Channel) -> None:
        self._rest_of_open = threading.local()
        super().__init__(sock)
        options = self.get_security_options()
        # Half the work of those that paramiko prefers.
        options.ciphers = sorted(options.ciphers, key=lambda cipher: "gcm" not in cipher)

    def open_unix_socket(self, path: str, timeout: float) -> paramiko.Channel:
        """Open a channel to a unix socket of the host.

        Args:
            path: Its absolute path there.
            timeout: Seconds.

        Returns:
            The channel.
        """
        # paramiko writes the common part of the message and has no way to add what this kind needs.
        self._rest_of_open.path = path
        try:
            return self.open_channel("direct-streamlocal@openssh.com", timeout=timeout)
        finally:
            self._rest_of_open.path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        path = getattr(self._rest_of_open, "path", None)
        if path is not None:
            self._rest_of_open.path = None
            data.add_string(path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]


def is_lost(channel: paramiko.Channel) -> bool:
    """Return whether a channel that has nothing more to read ended with its connection, not by itself."""
    return not channel.eof_received and channel.closed and is_dead(channel.get_transport())


def is_dead(transport: paramiko.Transport) -> bool:
    """Return whether a transport, one of whose channels has ended, has ended too."""
    # It closes its channels a moment before it says that it is not active any more.
    transport.join(LAST_MOMENT)
    return not transport.is_active()


def open_transport(place: str, access: SshAccess, resolved: Resolved, dial: Dial | None) -> Transport:
    """Connect to a host, check its key, and log in.

    Args:
        place: The host, for messages.
        access: Credentials and pinned key.
        resolved: Where it is.
        dial: Opens the way through a jump host; None: straight over TCP.

    Returns:
        A transport that is logged in and kept alive.

    Raises:
        HostUnreachableError: If nothing answers, or not as an SSH server does.
        HostKeyError: If its key is not the right one.
        HostAuthenticationError: If it refuses us.
    """
    trusted = trusted_keys(access.host_key, resolved.known_as, resolved.known_hosts)
    transport = _negotiate(place, trusted, dial or (lambda: _dial(place, resolved)))
    try:
        with _explained(place, "logging in", transport):
            _log_in(place, transport, access, resolved)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(KEEPALIVE)
    return transport


def _dial(place: str, resolved: Resolved) -> socket.socket:
    if resolved.proxy_command is not None:
        return _dial_through_command(place, resolved.proxy_command)
    try:
        connection = socket.create_connection((resolved.hostname, resolved.port), timeout=CONNECT_TIMEOUT)
    except socket.gaierror as error:
        raise HostUnreachableError(f"{place}: the name does not resolve, check `hostname`") from error
    except TimeoutError as error:
        raise NoAnswerError(
            f"{place}: no answer within {CONNECT_TIMEOUT:.0f} s: "
            "is it switched on, and do firewalls let us in?"
        ) from error
    except ConnectionRefusedError as error:
        raise HostUnreachableError(
            f"{place}: connection refused: does its SSH server run, and on this port?"
        ) from error
    except OSError as error:
        kind = NoAnswerError if error.errno == errno.EHOSTUNREACH else HostUnreachableError
        raise kind(
            f"{place}: {(error.strerror or str(error)).lower()}: check its address and the network between"
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED * 1000))
    elif sys.platform == "darwin":
        connection.setsockopt(socket.IPPROTO_TCP, TCP_RXT_CONNDROPTIME, int(UNACKNOWLEDGED))
    return connection


def _dial_through_command(place: str, command: str) -> ProxySocket:
    try:
        return ProxySocket(command)
    except OSError as error:
        raise HostUnreachableError(
            f"{place}: its ProxyCommand cannot be started: {error.filename or 'the shell'}: "
            f"{error.strerror}: check SHELL"
        ) from error


def _negotiate(place: str, trusted: TrustedKeys, dial: Dial) -> Transport:
    """Connect and check the host key.

    A fingerprint does not tell of what kind its key is, so the host is asked for each kind in turn.
    """
    offered: list[HostKey] = []
    while True:
        transport = Transport(dial())
        try:
            _prefer(transport, trusted.kinds, [key.kind for key in offered])
            with _explained(place, GREETING, transport):
                transport.banner_timeout = BANNER_TIMEOUT
                transport.auth_timeout = LOGIN_TIMEOUT
                transport.channel_timeout = CHANNEL_TIMEOUT
                # It returns without a word when the time is over, so the keys may not be agreed on yet.
                transport.start_client(timeout=BANNER_TIMEOUT)
                shown = transport.get_remote_server_key()
            key = HostKey(shown.get_name(), shown.asbytes())
            if trusted.accept(key):
                return transport
            offered.append(key)
            if key in trusted.revoked or not trusted.fingerprints:
                raise trusted.refuse(place, offered)
        except IncompatiblePeer as error:
            _hang_up(transport)
            if offered:
                raise trusted.refuse(place, offered) from None
            raise HostUnreachableError(
                f"{place}: its SSH server and we share no algorithm: {error}"
            ) from error
        except BaseException:
            _hang_up(transport)
            raise
        _hang_up(transport)


def _hang_up(transport: Transport) -> None:
    transport.close()
    # That does nothing for a transport whose thread was not started yet.
    transport.sock.close()


def _prefer(transport: Transport, first: Sequence[str], never: Sequence[str]) -> None:
    options = transport.get_security_options()
    kinds = [kind for kind in options.key_types if _key_of(kind) not in never]
    if not kinds:
        raise IncompatiblePeer("it has no other kind of host key")
    options.key_types = sorted(kinds, key=lambda kind: _key_of(kind) not in first)


def _key_of(algorithm: str) -> str:
    """Return the kind of key that an algorithm signs with: `rsa-sha2-512` signs with an `ssh-rsa` key."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


@contextlib.contextmanager
def _explained(place: str, doing: str, transport: Transport) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except (HostKeyError, HostAuthenticationError, IncompatiblePeer):
        raise
    except (paramiko.SSHException, OSError, EOFError) as error:
        waited = time.monotonic() - began
        silent = doing == GREETING and waited >= BANNER_TIMEOUT
        if isinstance(transport.sock, ProxySocket):
            raise _explain_command(place, transport.sock, error, waited if silent else None) from error
        if silent:
            raise NoAnswerError(
                f"{place}: it was connected but sent no greeting within {BANNER_TIMEOUT:g} s: "
                "is this the port of an SSH server, and is it overloaded?"
            ) from error
        raise HostUnreachableError(
            f"{place}: the connection broke while {doing} ({str(error) or type(error).__name__}): "
            "is this the port of an SSH server, and is it overloaded?"
        ) from error


def _explain_command(
    place: str, way: ProxySocket, error: Exception, silent_for: float | None
) -> HostUnreachableError:
    code, complaint = way.outcome()
    if code is not None:
        what = f"ended with exit code {code}"
    elif silent_for is not None:
        what = f"gave no answer within {silent_for:.0f} s"
    else:
        what = f"lost the connection ({str(error) or type(error).__name__})"
    kind = HostUnreachableError if code is not None or silent_for is None else NoAnswerError
    said = f": {complaint}" if complaint else ""
    return kind(f"{place}: its ProxyCommand {what}{said}: try `ssh` to it, and check ~/.ssh/config")


def _log_in(place: str, transport: Transport, access: SshAccess, resolved: Resolved) -> None:
    tried: list[str] = []
    for what, attempt in _credentials(place, access, resolved, tried):
        tried.append(what)
        try:
            missing = attempt(transport, resolved.user)
        except paramiko.BadAuthenticationType as error:
            tried[-1] += f" (it only takes {', '.join(error.allowed_types)})"
            continue
        except paramiko.AuthenticationException as error:
            if "timeout" in str(error).lower():
                raise paramiko.SSHException(str(error)) from error
            if not transport.is_active():
                tried.append("then it closed the connection")
                break
            continue
        if not missing:
            return
        tried[-1] += f" (accepted, but it wants {', '.join(missing)} too)"
    raise HostAuthenticationError(
        f"{place}: refused the user `{resolved.user}` with {'; '.join(tried) or 'no key at all'}: "
        "put the public key into ~/.ssh/authorized_keys there, or name the right `user` and `identity_file`"
    )


Attempt = Callable[[Transport, str], list[str]]


def _credentials(
    place: str, access: SshAccess, resolved: Resolved, tried: list[str]
) -> Iterator[tuple[str, Attempt]]:
    if access.ssh_key is not None:
        try:
            key = read_private_key(access.ssh_key.get_secret_value())
        except ValueError as error:
            raise HostAuthenticationError(f"{place}: `ssh_key`: {error}") from error
        yield f"`ssh_key` {_fingerprint(key)}", _with_key(key)
    for path in resolved.identity_files:
        try:
            key = read_private_key_file(path)
        except LockedKeyError:
            tried.append(f"no key of {path} (it has a passphrase: `ssh-add {path}`)")
            continue
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            tried.append(f"no key of {path} ({reason})")
            continue
        yield f"{path} {_fingerprint(key)}", _with_key(key)
    if resolved.use_agent:
        with contextlib.closing(paramiko.Agent()) as agent:
            for agent_key in agent.get_keys():
                yield f"the agent's {_fingerprint(agent_key)}", _with_key(agent_key)
    if access.password is not None:
        secret = access.password.get_secret_value()
        yield "its password", lambda transport, user: transport.auth_password(user, secret)


def _with_key(key: paramiko.PKey) -> Attempt:
    return lambda transport, user: transport.auth_publickey(user, key)


def _fingerprint(key: paramiko.PKey) -> str:
    return HostKey(key.get_name(), key.asbytes()).fingerprint
