"""Copies of files that share their blocks with the original where the file system can."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import sys
from pathlib import Path

from prefect_dstack.bundles.digests import open_file

__all__ = ["copy_file", "remove_tree", "write_out"]

# From linux/fs.h: the copy refers to the blocks of the original until one of them is written to.
FICLONE = 0x40049409
BLOCK = 1024**2


def copy_file(source: str, target: Path, mode: int, modified_ns: int) -> None:
    """Copy a file to a new one.

    Args:
        source: The file.
        target: Where the copy goes; nothing may be there.
        mode: The permissions of the copy.
        modified_ns: When it shall have been written last.

    Raises:
        OSError: If it cannot be copied; what there is of the copy stays.
    """
    with open_file(source) as original, target.open("xb") as copy:
        if not _clone(original.fileno(), copy.fileno()):
            shutil.copyfileobj(original, copy, BLOCK)
        copy.flush()
        os.fchmod(copy.fileno(), mode)
        os.utime(copy.fileno(), ns=(modified_ns, modified_ns))


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that is in it, even what is read-only.

    Args:
        directory: The directory; it may be gone already.

    Raises:
        OSError: If something cannot be removed.
    """
    if not directory.exists():
        return
    for place, _, _ in os.walk(directory):
        Path(place).chmod(0o700)
    shutil.rmtree(directory)


def write_out(directory: Path) -> None:
    """Wait until all that was written to a file system is on its disk, which costs less than file by file.

    Args:
        directory: Any directory of the file system.

    Raises:
        OSError: If it cannot be written.
    """
    if sys.platform != "linux":
        os.sync()
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)


def _clone(original: int, copy: int) -> bool:
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        fcntl.ioctl(copy, FICLONE, original)
        return True
    return False
