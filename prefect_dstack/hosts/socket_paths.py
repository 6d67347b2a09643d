"""Where unix sockets can be: their paths are short."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

__all__ = ["socket_directory"]

# sun_path holds 108 bytes on Linux and 104 on macOS, with the terminating NUL.
LONGEST_SOCKET_PATH = 100


def socket_directory(directory: Path) -> Path:
    """Find a directory whose path is short enough for unix sockets.

    Args:
        directory: Where the sockets would best be.

    Returns:
        `directory`, or a private directory under the system's temporary one, always the same for the
        same `directory` and user. It exists, and only this user may enter it.

    Raises:
        PermissionError: If somebody else holds the private directory.
    """
    if len(str(directory)) + len("/haproxy-runtime.sock") > LONGEST_SOCKET_PATH:
        digest = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()) / f"prefect-dstack-{os.getuid()}-{digest}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory}: belongs to another user, set TMPDIR to a directory of your own")
    directory.chmod(0o700)
    return directory
