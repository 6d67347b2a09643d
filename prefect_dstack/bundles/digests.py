"""Digests of files, remembered so that a file which has not changed is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from prefect_dstack.errors import ConfigurationError

__all__ = ["RememberedDigests", "file_digest", "open_file"]

# A file that was written just now may be written again within the same tick of the file system's clock.
SETTLED = 2.0
ATTEMPTS = 3
BLOCK = 1024**2

Signature = list[int]


class RememberedDigests:
    """The digests of the files of one directory.

    Args:
        path: Where they are remembered; None: nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, tuple[Signature, str]] = {}
        self._seen: dict[str, tuple[Signature, str]] = {}
        if path is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                known = json.loads(path.read_bytes())
                self._known = {
                    name: (list(signature), str(digest)) for name, (signature, digest) in known.items()
                }

    def digest(self, path: str) -> tuple[str, os.stat_result]:
        """Return the SHA-256 of a file's content and its status, reading it only if it has changed.

        Args:
            path: Its absolute path.

        Raises:
            ConfigurationError: If it changes again and again while it is read.
            OSError: If it cannot be read.
        """
        status = os.lstat(path)
        known = self._known.get(path)
        if known is None or known[0] != _signature(status):
            digest, status = file_digest(path)
            known = _signature(status), digest
        if status.st_ctime < time.time() - SETTLED:
            self._seen[path] = known
        return known[1], status

    def save(self) -> None:
        """Remember what was seen, and nothing else; whoever cannot write it down reads the files again."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            if self._seen == self._known:
                os.utime(self.path)
                return
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
                file.write(json.dumps(self._seen).encode())
            Path(file.name).replace(self.path)


def file_digest(path: str) -> tuple[str, os.stat_result]:
    """Read a file whole.

    Args:
        path: Its path.

    Returns:
        The SHA-256 of its content, and its status.

    Raises:
        ConfigurationError: If it changes again and again while it is read.
        OSError: If it cannot be read.
    """
    for _ in range(ATTEMPTS):
        with open_file(path) as file:
            before = os.fstat(file.fileno())
            total = hashlib.sha256()
            while block := file.read(BLOCK):
                total.update(block)
            after = os.fstat(file.fileno())
        if _signature(before) == _signature(after):
            return total.hexdigest(), after
    raise ConfigurationError(
        f"{path}: changes while it is read: try again when nothing writes to it; if the application does, "
        "name it in .dstackignore"
    )


def open_file(path: str) -> BinaryIO:
    """Open a file to read it, unless something else has taken its place meanwhile.

    Args:
        path: Its path.

    Returns:
        The file; the caller closes it.

    Raises:
        FileNotFoundError: If it is gone, or no longer a file.
        OSError: If it cannot be read.
    """
    try:
        # A pipe would keep whoever opens it waiting for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FileNotFoundError(error.errno, "is no file any more", path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(0, "is no file any more", path)
    return os.fdopen(descriptor, "rb", buffering=0)


def _signature(status: os.stat_result) -> Signature:
    # The time of the last change of the inode cannot be set back, unlike that of the content.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
