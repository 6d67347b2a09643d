"""Files that a run has made, from the tar stream that a container engine sends."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["unpack"]

# Larger archives go to the disk.
IN_MEMORY = 16 * 1024**2


def unpack(stream: Iterable[bytes], name: str, target: Path) -> None:
    """Unpack one file or directory; nothing of it lands outside of its place.

    Args:
        stream: A tar archive in parts.
        name: What the file or directory is called in it.
        target: What it is to be called here. A file goes into a directory that is there, the files of a
            directory beside those that it has.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as fresh,
    ):
        for part in stream:
            spool.write(part)
        spool.seek(0)
        with tarfile.open(fileobj=spool) as archive:
            archive.extractall(fresh, filter="data")
        made = Path(fresh, name)
        if made.is_dir() and target.is_dir():
            shutil.copytree(made, target, symlinks=True, dirs_exist_ok=True)
        else:
            made.replace(target / name if target.is_dir() else target)
