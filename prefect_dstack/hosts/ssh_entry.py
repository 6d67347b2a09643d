"""Entries by which `ssh NAME` enters a container or a host.

They stand in a file of ours, which an `Include` line at the top of `~/.ssh/config` brings in. With the last
entry that line goes too, and everything else in `~/.ssh/config` stays as it is, byte for byte.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.host_keys import HostKey

__all__ = ["SshEntry", "add_entry", "entry_names", "remove_entry"]

HEADER = "# Written by prefect-dstack: what is changed here will be lost.\n"
# Tells a file that we have made from one that was empty.
MADE = b"# Made by prefect-dstack, which removes this file again if nothing is added to it.\n"
BLOCK = re.compile(rb"\s*(host|match)[\s=]", re.IGNORECASE)


class SshEntry(BaseModel):
    """What `ssh NAME` needs to know.

    Example:
        >>> print(SshEntry(name="train", hostname="10.0.0.5", user="root").block(Path("/h")), end="")
        Host train
            HostName 10.0.0.5
            User root
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$", description="What stands after `ssh` to get there."
    )
    hostname: str = Field(
        pattern=r"^[A-Za-z0-9_:][A-Za-z0-9._:-]{0,252}$", description="The host's name or address."
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="The port of its SSH server.")
    user: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$", description="Who logs in."
    )
    identity_file: Path | None = Field(default=None, description="The private key to log in with.")
    host_key: str | None = Field(
        default=None,
        description="The one key that it may show (`ssh-ed25519 AAAA...`); default: what known_hosts says.",
    )
    proxy_jump: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_\[][A-Za-z0-9._:@,\[\]-]*$",
        description="The hosts before it, as in `ssh -J`; another entry's name will do.",
    )
    proxy_command: str | None = Field(
        default=None, min_length=1, repr=False, description="The command that leads to it."
    )

    @field_validator("host_key")
    @classmethod
    def _check_host_key(cls, value: str | None) -> str | None:
        return None if value is None else HostKey.parse(value).line

    @field_validator("proxy_jump")
    @classmethod
    def _check_jump(cls, value: str | None) -> str | None:
        if value is not None:
            SshAccess.parse_jumps(value)
        return value

    @field_validator("proxy_command")
    @classmethod
    def _check_command(cls, value: str | None) -> str | None:
        if value is not None and (not value.isprintable() or value != value.strip()):
            raise ValueError("must be one line, without blanks around it")
        return value

    @field_validator("identity_file")
    @classmethod
    def _check_path(cls, value: Path | None) -> Path | None:
        if value is not None:
            _quoted(value)
        return value

    @model_validator(mode="after")
    def _check_way(self) -> Self:
        if self.proxy_jump is not None and self.proxy_command is not None:
            raise ValueError("must have `proxy_jump` or `proxy_command`, not both")
        return self

    def block(self, known_hosts: Path) -> str:
        """Return the entry.

        Args:
            known_hosts: The file that holds its host key, if it has one.

        Returns:
            Lines of a configuration of OpenSSH.
        """
        options: dict[str, object] = {"HostName": self.hostname, "Port": self.port, "User": self.user}
        if self.identity_file is not None:
            options |= {"IdentityFile": _quoted(self.identity_file), "IdentitiesOnly": "yes"}
        if self.host_key is not None:
            options |= {
                "HostKeyAlias": self.name,
                "UserKnownHostsFile": _quoted(known_hosts),
                "GlobalKnownHostsFile": "/dev/null",
                "StrictHostKeyChecking": "yes",
                "UpdateHostKeys": "no",
            }
        options |= {"ProxyJump": self.proxy_jump, "ProxyCommand": self.proxy_command}
        lines = [f"    {name} {value}\n" for name, value in options.items() if value is not None]
        return "".join([f"Host {self.name}\n", *lines])


def add_entry(entry: SshEntry, home: Path) -> None:
    """Add an entry so that `ssh NAME` reaches a host. An entry of the same name is replaced.

    Args:
        entry: How it is entered.
        home: The home directory of prefect-dstack, where our file is.

    Raises:
        ConfigurationError: If `~/.ssh/config` or our own file cannot be written.
    """
    directory = _directory(home)
    known_hosts = directory / "known_hosts" / entry.name
    with _locked():
        blocks = _read(directory)
        blocks[entry.name] = entry.block(known_hosts)
        with _explained(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            known_hosts.parent.mkdir(mode=0o700, exist_ok=True)
            known_hosts.unlink(missing_ok=True)
            if entry.host_key is not None:
                _replace(known_hosts, f"{entry.name} {entry.host_key}\n".encode())
            _write(directory, blocks)
        _include(directory / "config")


def remove_entry(name: str, home: Path) -> None:
    """Forget an entry; one that is not there is no error.

    Args:
        name: The entry's name.
        home: The home directory of prefect-dstack.

    Raises:
        ConfigurationError: If `~/.ssh/config` or our own file cannot be written.
    """
    directory = _directory(home)
    if name not in entry_names(home):
        return
    with _locked():
        blocks = _read(directory)
        if blocks.pop(name, None) is None:
            return  # somebody else was faster
        if not blocks:
            _exclude(directory / "config")
        with _explained(directory):
            if blocks:
                _write(directory, blocks)
                (directory / "known_hosts" / name).unlink(missing_ok=True)
            else:
                shutil.rmtree(directory)


def entry_names(home: Path) -> list[str]:
    """List the entries.

    Args:
        home: The home directory of prefect-dstack.

    Returns:
        Their names, in order.
    """
    return sorted(_read(_directory(home)))


def _directory(home: Path) -> Path:
    return home.absolute() / "ssh"


def _quoted(path: Path) -> str:
    """Quote a path for OpenSSH, or refuse it."""
    text = str(path)
    if not text.isprintable() or '"' in text or "\\" in text or "${" in text:
        raise ConfigurationError(f"{text!r}: OpenSSH does not take such a path, choose a plainer one")
    return '"' + text.replace("%", "%%") + '"'


def _read(directory: Path) -> dict[str, str]:
    """Read the blocks of our file by the names of their entries."""
    try:
        text = (directory / "config").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", source=directory / "config") from error
    return _blocks(text)


def _blocks(text: str) -> dict[str, str]:
    _, *blocks = re.split(r"^(?=Host )", text, flags=re.MULTILINE)
    return {block.split(maxsplit=2)[1]: block for block in blocks}


def _write(directory: Path, blocks: dict[str, str]) -> None:
    text = HEADER + "".join(blocks[name] for name in sorted(blocks))
    _replace(directory / "config", text.encode())


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the directory `~/.ssh`, so that two processes do not write at the same time, and no file stays."""
    directory = Path.home() / ".ssh"
    with _explained(directory), contextlib.ExitStack() as stack:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        held = stack.pop_all()
    with held:
        yield


def _include_line(ours: Path) -> bytes:
    # OpenSSH takes it for a pattern.
    return b"Include " + _quoted(Path(glob.escape(str(ours)))).replace("%%", "%").encode()


def _include(ours: Path) -> None:
    path = Path.home() / ".ssh" / "config"
    with _explained(path, f"put the line `{_include_line(ours).decode()}` at its top by hand"):
        content = path.read_bytes() if path.exists() else None
        if content is None:
            _replace(path, _include_line(ours) + b"\n" + MADE)
        elif not _includes(content, ours):
            _replace(path, _include_line(ours) + b"\n" + content)


def _exclude(ours: Path) -> None:
    path = Path.home() / ".ssh" / "config"
    with _explained(path, f"take the line `{_include_line(ours).decode()}` out of it by hand"):
        content = path.read_bytes() if path.exists() else b""
        lines = content.split(b"\n")
        kept = [line for line in lines if line.strip() != _include_line(ours)]
        if b"\n".join(kept) == MADE:
            path.unlink()
        elif len(kept) < len(lines):
            _replace(path, b"\n".join(kept))


def _includes(content: bytes, ours: Path) -> bool:
    """Return whether our line stands where it counts for every host."""
    for line in content.split(b"\n"):
        if BLOCK.match(line):
            return False
        if line.strip() == _include_line(ours):
            return True
    return False


def _replace(path: Path, data: bytes) -> None:
    """Write a file atomically, keeping its mode, its owner and a link."""
    path = path.resolve()
    descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if path.exists():
                status = path.stat()
                os.fchmod(descriptor, status.st_mode & 0o7777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _explained(path: Path, remedy: str = "check its owner and mode, and the disk") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"cannot be changed: {reason}: {remedy}", source=path) from error
