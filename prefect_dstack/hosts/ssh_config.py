"""What `~/.ssh/config` says about a host."""

from __future__ import annotations

import getpass
import glob
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.access import SshAccess

__all__ = ["Resolved", "resolve"]

DEEPEST_INCLUDE = 16

# paramiko takes tokens and quotes of these in its own way, and forgets which of the first two came first.
# Under names that it does not know, and with a mark before any quotes, it leaves them as they are.
JUMP, COMMAND, KNOWN_HOSTS = (
    "prefectdstackproxyjump",
    "prefectdstackproxycommand",
    "prefectdstackuserknownhostsfile",
)
MARK = ":"
OWN_LINE = re.compile(
    r"\s*(proxyjump|proxycommand|userknownhostsfile)(?:\s*=\s*|\s+)(.*\S)\s*", re.IGNORECASE
)
BLOCK_LINE = re.compile(r"\s*(host|match)[\s=].*", re.IGNORECASE)
INCLUDE_LINE = re.compile(r"\s*include(?:\s*=\s*|\s+)(.*\S)\s*", re.IGNORECASE)
TOKEN = re.compile(r"%(.?)", re.DOTALL)
# What a shell would not take as a part of a name; `ssh` refuses them as well.
UNSAFE = re.compile(r"""[\s'"`$\\;&<>|(){}\x00-\x1f\x7f]""")


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
        proxy_command: The command that leads to it, for the user's shell; None: there is none.
    """

    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    use_agent: bool
    known_as: tuple[str, ...]
    known_hosts: tuple[Path, ...]
    proxy_jump: SshAccess | None
    # It may hold a password.
    proxy_command: str | None = field(default=None, repr=False)


def resolve(access: SshAccess) -> Resolved:
    """Complete an access with the user's SSH configuration and SSH's defaults.

    Args:
        access: What was written; it wins over `~/.ssh/config`.

    Returns:
        How to connect.

    Raises:
        ConfigurationError: If `~/.ssh/config` cannot be read or understood.
    """
    path = Path.home() / ".ssh" / "config"
    options = _lookup(path, access.hostname)
    hostname = str(options.get("hostname", access.hostname))
    port = access.port or _port(options.get("port", "22"), access.hostname, path)
    user = access.user or options.get("user") or getpass.getuser()
    tokens = {"%": "%", "h": hostname, "n": access.hostname, "p": str(port), "r": user}
    jump, command = access.proxy_jump, None
    if jump is None:
        jump, command = _proxy(options, tokens, access.hostname, path)
    explicit = access.ssh_key is not None or access.password is not None
    alias = options.get("hostkeyalias")
    plain = alias or hostname
    return Resolved(
        hostname=hostname,
        port=port,
        user=user,
        identity_files=_identity_files(access, options, explicit),
        use_agent=not explicit and options.get("identitiesonly", "no") != "yes",
        known_as=(plain,) if alias or port == 22 else (f"[{plain}]:{port}",),
        known_hosts=_known_hosts(options, {**tokens, "d": str(Path.home()), "u": getpass.getuser()}, path),
        proxy_jump=jump,
        proxy_command=command,
    )


def _port(text: str, host: str, path: Path) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ConfigurationError(f"Port of {host} must be from 1 to 65535, not {text!r}", source=path)
    return int(text)


def _proxy(
    options: Mapping[str, str], tokens: Mapping[str, str], host: str, path: Path
) -> tuple[SshAccess | None, str | None]:
    """Find the jump host or else the command; of the two, the first one in the file rules out the other."""
    for name in [name for name in options if name in (JUMP, COMMAND)]:
        value = options[name].removeprefix(MARK)
        # `ProxyJump none` rules out a later jump, but no command.
        if name == COMMAND:
            if value.lower() == "none":
                break
            return None, _expand(value, tokens, f"ProxyCommand of {host}", path)
        if value.lower() != "none":
            jump = _expand(value.strip('"'), tokens, f"ProxyJump of {host}", path)
            try:
                return SshAccess.parse_jumps(jump), None
            except ValueError as error:
                raise ConfigurationError(
                    f"ProxyJump of {host}: {value!r} is not a host, write [user@]host[:port]", source=path
                ) from error
    return None, None


def _expand(value: str, tokens: Mapping[str, str], option: str, path: Path) -> str:
    def replace(found: re.Match[str]) -> str:
        token = found[1]
        if token not in tokens:
            known = ", ".join(f"%{name}" for name in tokens)
            raise ConfigurationError(f"{option}: there is no `%{token}`, only {known}", source=path)
        if UNSAFE.search(tokens[token]):
            raise ConfigurationError(
                f"{option}: `%{token}` is {tokens[token]!r}, which a shell would not take as one word: "
                "write a plain name or address",
                source=path,
            )
        return tokens[token]

    return TOKEN.sub(replace, value)


def _identity_files(access: SshAccess, options: paramiko.SSHConfigDict, explicit: bool) -> tuple[Path, ...]:
    if access.identity_file is not None:
        return (access.identity_file.expanduser(),)
    if explicit:
        return ()
    if "identityfile" in options:
        configured = options["identityfile"]
        return tuple(
            Path(name.replace("%%", "%")).expanduser() for name in configured if name.lower() != "none"
        )
    defaults = (Path.home() / ".ssh" / f"id_{kind}" for kind in ("ed25519", "ecdsa", "rsa"))
    return tuple(path for path in defaults if path.is_file())


def _known_hosts(options: paramiko.SSHConfigDict, tokens: Mapping[str, str], path: Path) -> tuple[Path, ...]:
    named = options.get(KNOWN_HOSTS, "~/.ssh/known_hosts ~/.ssh/known_hosts2").removeprefix(MARK)
    own = [
        Path(TOKEN.sub(lambda found: tokens.get(found[1], found[0]), name)).expanduser()
        for name in _words(named, "UserKnownHostsFile", path)
        if name.lower() != "none"
    ]
    return (*own, Path("/etc/ssh/ssh_known_hosts"))


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
    lines, block = [], "Host *"
    for line in path.read_text(errors="replace").splitlines():
        if own := OWN_LINE.fullmatch(line):
            lines.append(f"prefectdstack{own[1].lower()} {MARK}{own[2]}")
        elif (included := INCLUDE_LINE.fullmatch(line)) and depth:
            for pattern in _words(included[1], "Include", path):
                whole = Path.home() / ".ssh" / Path(pattern).expanduser()
                lines += [_with_includes(Path(name), depth - 1) for name in sorted(glob.glob(str(whole)))]  # noqa: PTH207
            # A block that began in another file ends with it.
            lines.append(block)
        else:
            if BLOCK_LINE.fullmatch(line):
                block = line
            lines.append(line)
    return "\n".join(lines)


def _words(text: str, option: str, path: Path) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigurationError(f"{option} {text}: {error}", source=path) from error
