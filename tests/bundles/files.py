"""Trees of files for tests, and what is in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def write(path: Path, text: str | bytes = "", mode: int = 0o644) -> Path:
    """Write a file with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def contents(directory: Path) -> dict[str, str]:
    """Files below a directory with what is in them, links with their targets, directories with a slash."""
    found = {}
    for place, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = Path(place, name)
            relative = os.fsdecode(os.path.relpath(path, directory))
            if path.is_symlink():
                found[relative] = f"-> {path.readlink()}"
            elif path.is_dir():
                found[f"{relative}/"] = ""
            else:
                found[relative] = path.read_bytes().decode(errors="replace")
    return found


def disk_use(directory: Path) -> int:
    """The bytes of all files below a directory, each once."""
    sizes = {}
    for place, _, files in os.walk(directory):
        for name in files:
            status = Path(place, name).lstat()
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())
