"""What `~/.ssh/config` says about a host."""

from __future__ import annotations

import getpass
import glob
from dataclasses import dataclass
from pathlib import Path

import paramiko

from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.access import SshAccess

__all__ = ["Resolved", "resolve"]

DEEPEST_INCLUDE = 8


@dataclass(frozen=True)
class Resolved:
    """Everything that is needed to connect, nothing left open.

    Attributes:
        hostname: The name or address to connect to.
        port: The port there.
        user: Who we log in as.
        identity_files: Private keys to try, in order.
        use_agent: Whether keys of an SSH agent are tried.
        known_as: What known_hosts calls it.
        known_hosts: The files to look in.
        proxy_jump: The host before it.
    """

    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    use_agent: bool
    known_as: tuple[str, ...]
    known_hosts: tuple[Path, ...]
    proxy_jump: SshAccess | None


def resolve(access: SshAccess) -> Resolved:
    """Complete an access with the user's SSH configuration and SSH's defaults.

    Args:
        access: What was written; it wins over `~/.ssh/config`.

    Returns:
        How to connect.

    Raises:
        ConfigurationError: If `~/.ssh/config` cannot be read, or asks for a ProxyCommand.
    """
    path = Path.home() / ".ssh" / "config"
    options = _lookup(path, access.hostname)
    hostname = str(options.get("hostname", access.hostname))
    port = access.port or int(options.get("port", 22))
    jump = access.proxy_jump
    if jump is None and "proxyjump" in options:
        jump = SshAccess.parse_jumps(options["proxyjump"])
    elif jump is None and options.get("proxycommand", "none") != "none":
        raise ConfigurationError(
            f"ProxyCommand of {access.hostname} is not supported: use ProxyJump there, or `proxy_jump`",
            source=path,
        )
    explicit = access.ssh_key is not None or access.password is not None
    alias = options.get("hostkeyalias")
    plain = alias or hostname
    return Resolved(
        hostname=hostname,
        port=port,
        user=access.user or options.get("user") or getpass.getuser(),
        identity_files=_identity_files(access, options, explicit),
        use_agent=not explicit and options.get("identitiesonly", "no") != "yes",
        known_as=(plain,) if alias or port == 22 else (f"[{plain}]:{port}",),
        known_hosts=_known_hosts(options),
        proxy_jump=jump,
    )


def _identity_files(access: SshAccess, options: paramiko.SSHConfigDict, explicit: bool) -> tuple[Path, ...]:
    if access.identity_file is not None:
        return (access.identity_file.expanduser(),)
    if explicit:
        return ()
    if "identityfile" in options:
        configured = options["identityfile"]
        return tuple(Path(name).expanduser() for name in configured)
    defaults = (Path.home() / ".ssh" / f"id_{kind}" for kind in ("ed25519", "ecdsa", "rsa"))
    return tuple(path for path in defaults if path.is_file())


def _known_hosts(options: paramiko.SSHConfigDict) -> tuple[Path, ...]:
    named = options.get("userknownhostsfile")
    own = named.split() if isinstance(named, str) else ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"]
    return (*(Path(name).expanduser() for name in own), Path("/etc/ssh/ssh_known_hosts"))


def _lookup(path: Path, hostname: str) -> paramiko.SSHConfigDict:
    try:
        text = _with_includes(path, DEEPEST_INCLUDE)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", source=path) from error
    try:
        return paramiko.SSHConfig.from_text(text).lookup(hostname)
    except (paramiko.SSHException, ImportError, ValueError, KeyError) as error:
        raise ConfigurationError(f"cannot be understood: {error}", source=path) from error


def _with_includes(path: Path, depth: int) -> str:
    """Read a file, and in place of its Include lines, which paramiko does not know, the files they name."""
    if not path.is_file():
        return ""
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        words = line.replace("=", " ", 1).split()
        if len(words) > 1 and words[0].lower() == "include" and depth:
            for pattern in words[1:]:
                whole = Path.home() / ".ssh" / Path(pattern.strip('"')).expanduser()
                lines += [_with_includes(Path(name), depth - 1) for name in sorted(glob.glob(str(whole)))]  # noqa: PTH207
        else:
            lines.append(line)
    return "\n".join(lines)
