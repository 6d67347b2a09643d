"""What a bundle consists of."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Bundle", "Entry", "bundle_digest", "entry_of", "kept_mode", "stored_entries"]

_KINDS: dict[int, Literal["directory", "file", "link"]] = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, a directory or a symbolic link of a bundle.

    Attributes:
        path: Where it is in the bundle, relative, with slashes.
        kind: What it is.
        source: Where it is found on this machine.
        mode: Its permissions, without what differs from machine to machine.
        modified_ns: When it was last written, in nanoseconds.
        size: The bytes of a file.
        digest: The SHA-256 of a file's content; empty while it has not been read.
        target: Where a link leads.
    """

    path: str
    kind: Literal["directory", "file", "link"]
    source: str
    mode: int
    modified_ns: int = 0
    size: int = 0
    digest: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of one revision, as they were when they were read.

    Attributes:
        digest: The SHA-256 of all paths, permissions and contents, the same on every machine.
        entries: In order, a directory before what is in it.
        ignored: The names in the directory itself that were left out, such as `.venv`.
    """

    digest: str
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(entry.size for entry in self.entries)


def entry_of(path: str, source: str, status: os.stat_result) -> Entry | None:
    """Describe what is found at a path.

    Args:
        path: Its path in the bundle.
        source: Its path on this machine.
        status: What `lstat` says of it.

    Returns:
        The entry, a file without its digest; None for a socket, a pipe or a device.

    Raises:
        OSError: If a link cannot be read.
    """
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    if kind == "link":
        return Entry(path, kind, source, 0o777, status.st_mtime_ns, target=str(Path(source).readlink()))
    size = status.st_size if kind == "file" else 0
    return Entry(path, kind, source, kept_mode(status.st_mode), status.st_mtime_ns, size)


def kept_mode(mode: int) -> int:
    """Return the permissions without what a umask makes different from machine to machine.

    Whether the owner may execute it stays, and whether others have no access: a program may refuse a private
    key that others can read.

    Args:
        mode: The permissions on this machine.

    Returns:
        One of 644, 755, 600 and 700.
    """
    kept = 0o644 if mode & 0o004 else 0o600
    return kept | ((kept & 0o444) >> 2 if mode & 0o100 else 0)


def bundle_digest(entries: Iterable[Entry]) -> str:
    """Return a digest of paths, permissions and contents.

    Args:
        entries: In order, files with their digests.

    Returns:
        A hexadecimal SHA-256.
    """
    total = hashlib.sha256(b"bundle 1\n")
    for entry in entries:
        content = entry.target if entry.kind == "link" else entry.digest
        for field in (entry.kind, f"{entry.mode:o}", entry.path, content):
            encoded = os.fsencode(field)
            # Lengths first, so that no two lists of fields look the same.
            total.update(b"%d:%s" % (len(encoded), encoded))
    return total.hexdigest()


def stored_entries(directory: Path) -> tuple[Entry, ...]:
    """List a copy that a store has made.

    Args:
        directory: What `BundleStore.path` returned.

    Returns:
        Its entries in order, with the permissions that they had when they were collected; files have no
        digest.

    Raises:
        OSError: If it cannot be read.
    """
    found: list[Entry] = []
    waiting = [("", str(directory))]
    while waiting:
        prefix, place = waiting.pop()
        with os.scandir(place) as listing:
            for item in listing:
                entry = entry_of(prefix + item.name, item.path, item.stat(follow_symlinks=False))
                if entry is None:
                    continue
                found.append(entry)
                if entry.kind == "directory":
                    waiting.append((f"{entry.path}/", item.path))
    return tuple(sorted(found, key=lambda entry: os.fsencode(entry.path)))
