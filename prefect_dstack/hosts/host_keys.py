"""Which key a host must show before we talk to it: pinned by hand, or known from known_hosts files."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefect_dstack.errors import HostKeyError

__all__ = ["HostKey", "TrustedKeys", "parse_pin", "read_known_hosts", "trusted_keys"]

FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")


@dataclass(frozen=True)
class HostKey:
    """A public key of a host."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` writes it: `SHA256:...`."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """As it stands in a file: `ssh-ed25519 AAAA...`."""
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"

    @classmethod
    def parse(cls, text: str) -> HostKey:
        """Read `ssh-ed25519 AAAA... comment`.

        Args:
            text: The line of a public key file.

        Returns:
            The key.

        Raises:
            ValueError: If it is not one.
        """
        parts = text.split()
        try:
            kind, blob = parts[0], base64.b64decode(parts[1], validate=True)
        except (IndexError, binascii.Error) as error:
            raise ValueError("not a public key, write it like `ssh-ed25519 AAAA...`") from error
        if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
            raise ValueError(f"the public key does not hold the {kind!r} key that it announces")
        return cls(kind, blob)

    def __str__(self) -> str:
        return f"{self.kind} {self.fingerprint}"


@dataclass(frozen=True)
class TrustedKeys:
    """What a host may show.

    Attributes:
        keys: Keys that are right.
        fingerprints: Fingerprints that are right.
        revoked: Keys that are refused whatever else is said.
        source: Where this stands, for messages.
    """

    keys: tuple[HostKey, ...] = ()
    fingerprints: tuple[str, ...] = ()
    revoked: tuple[HostKey, ...] = ()
    source: str = ""

    def accept(self, key: HostKey) -> bool:
        """Return whether a key is one of the right ones."""
        if key in self.revoked:
            return False
        return key in self.keys or key.fingerprint in self.fingerprints

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the keys that are right, to ask the host for these first."""
        return tuple(dict.fromkeys(key.kind for key in self.keys))

    def refuse(self, host: str, offered: Sequence[HostKey]) -> HostKeyError:
        """Explain why none of the keys that a host has offered is accepted, and what to do.

        Args:
            host: The host, for the message.
            offered: At least one key.

        Returns:
            The error to raise.
        """
        shown = " and ".join(str(key) for key in offered)
        if any(key in self.revoked for key in offered):
            return HostKeyError(f"{host}: its host key {shown} is marked @revoked in {self.source}")
        expected = [str(key) for key in self.keys] or list(self.fingerprints)
        if not expected:
            return HostKeyError(
                f"{host}: its host key {shown} is not known: compare it with the host's own "
                f"(`ssh-keygen -lf /etc/ssh/ssh_host_{_file_kind(offered[0])}_key.pub` on its console), "
                f"then set `host_key: {offered[0].fingerprint}` for it, or add it to ~/.ssh/known_hosts"
            )
        return HostKeyError(
            f"{host}: its host key is {shown}, but {' or '.join(expected)} is expected by {self.source}: "
            "somebody may be in between; if the host was set up anew, put its new key there"
        )


def _file_kind(key: HostKey) -> str:
    return "ed25519" if "ed25519" in key.kind else "ecdsa" if "ecdsa" in key.kind else "rsa"


def parse_pin(text: str) -> HostKey | str:
    """Read what a person writes to pin a host key.

    Args:
        text: A fingerprint `SHA256:...`, or a public key.

    Returns:
        The fingerprint without padding, or the key.

    Raises:
        ValueError: If it is neither.
    """
    text = text.strip()
    if FINGERPRINT.fullmatch(text):
        return text.rstrip("=")
    if text.upper().startswith("MD5:") or re.fullmatch(r"([0-9a-f]{2}:){15}[0-9a-f]{2}", text):
        raise ValueError("an MD5 fingerprint is not safe, give the one that starts with SHA256:")
    return HostKey.parse(text)


def trusted_keys(pin: str | None, names: Sequence[str], known_hosts: Iterable[Path]) -> TrustedKeys:
    """Return the keys that a host may present.

    Args:
        pin: A fingerprint or key that was given for this host; then no file is read.
        names: What the host is called in known_hosts: `gpu-1`, or `[gpu-1]:2222`.
        known_hosts: The files; missing ones are skipped.

    Returns:
        What is trusted; nothing if the host is unknown.
    """
    if pin is not None:
        trusted = parse_pin(pin)
        if isinstance(trusted, HostKey):
            return TrustedKeys(keys=(trusted,), source="its `host_key`")
        return TrustedKeys(fingerprints=(trusted,), source="its `host_key`")
    keys: list[HostKey] = []
    revoked: list[HostKey] = []
    sources: list[str] = []
    for path in known_hosts:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found = read_known_hosts(text, names)
        if found.keys or found.revoked:
            sources.append(str(path))
        keys += found.keys
        revoked += found.revoked
    return TrustedKeys(keys=tuple(keys), revoked=tuple(revoked), source=" and ".join(sources))


@dataclass
class _Found:
    keys: list[HostKey] = field(default_factory=list)
    revoked: list[HostKey] = field(default_factory=list)


def read_known_hosts(text: str, names: Sequence[str]) -> TrustedKeys:
    """Read the keys of one host from a known_hosts file.

    Understood are hashed names, patterns with `*`, `?` and `!`, `[host]:port` and `@revoked`; lines with
    `@cert-authority` and lines that make no sense are skipped, as `ssh` skips them.

    Args:
        text: The file.
        names: What the host is called there.

    Returns:
        Its keys.
    """
    found = _Found()
    for line in text.splitlines():
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        marker = parts.pop(0) if parts[0].startswith("@") else ""
        if marker not in ("", "@revoked") or len(parts) < 3:
            continue
        if not any(_matches(parts[0], name) for name in names):
            continue
        try:
            key = HostKey.parse(f"{parts[1]} {parts[2]}")
        except ValueError:
            continue
        (found.revoked if marker else found.keys).append(key)
    return TrustedKeys(keys=tuple(found.keys), revoked=tuple(found.revoked))


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in patterns[3:].split("|"))
        except (ValueError, binascii.Error):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    matched = False
    for pattern in patterns.split(","):
        if fnmatch.fnmatchcase(name.lower(), pattern.lower().lstrip("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched
