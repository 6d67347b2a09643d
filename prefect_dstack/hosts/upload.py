"""Files that a run brings along, as one tar stream to unpack at `/` of its container."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from prefect_dstack.bundles import Entry
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError

__all__ = ["container_path", "pack_files"]

# Larger archives go to the disk.
IN_MEMORY = 16 * 1024**2


def pack_files(
    files: Sequence[FileMapping],
    entries: Iterable[Entry],
    working_dir: str = "/",
    *,
    owner: tuple[int, int] = (0, 0),
    home: str | None = None,
) -> IO[bytes]:
    """Pack files and directories for a container.

    Args:
        files: What goes where.
        entries: What was collected of them with `collect_files`, or is stored of that.
        working_dir: What relative paths in the container start from, absolute.
        owner: User and group ids that own the files there.
        home: What `~/` stands for in the container; None if that is not known.

    Returns:
        A tar archive whose paths are relative to `/`, at its beginning; the caller closes it.

    Raises:
        ConfigurationError: If a path in the container cannot be, or a file cannot be read.

    Example:
        >>> with pack_files(files, stored_entries(copy), "/app") as archive:  # doctest: +SKIP
        ...     container.put_archive("/", archive)
    """
    targets = [
        container_path(mapping.path, working_dir, f"files.{number}", home)
        for number, mapping in enumerate(files)
    ]
    spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for entry in entries:
                number, _, rest = entry.path.partition("/")
                # A directory itself is not packed: it may be one that the image has, with its own mode.
                if rest or entry.kind == "file":
                    _add(archive, entry, targets[int(number)] / rest, owner)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool


def container_path(path: str, working_dir: str, key: str, home: str | None) -> PurePosixPath:
    """Return where a path of a configuration is in a container.

    Args:
        path: The path, absolute, or relative to the working directory or to `~/`.
        working_dir: The working directory, absolute.
        key: The key that has it, for messages.
        home: What `~/` stands for in the container; None if that is not known.

    Returns:
        The path relative to `/`.

    Raises:
        ConfigurationError: If it cannot be.
    """
    if home and (path == "~" or path.startswith("~/")):
        path = home.rstrip("/") + path[1:] or "/"
    if path.startswith("~"):
        raise ConfigurationError(f"{path}: give the whole path that it shall have in the container", key=key)
    target = PurePosixPath("/", working_dir, path)
    if ".." in target.parts:
        raise ConfigurationError(f"{path}: must not have '..' in it", key=key)
    # Of a path that begins with two slashes, pathlib keeps both.
    return PurePosixPath(*target.parts[1:])


def _add(archive: tarfile.TarFile, entry: Entry, name: PurePosixPath, owner: tuple[int, int]) -> None:
    member = tarfile.TarInfo(str(name))
    member.uid, member.gid = owner
    member.mode = entry.mode
    member.mtime = entry.modified_ns / 1e9
    if entry.kind == "directory":
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    elif entry.kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
        archive.addfile(member)
    else:
        member.size = entry.size
        try:
            with Path(entry.source).open("rb") as content:
                archive.addfile(member, content)
        except OSError as error:
            raise ConfigurationError(
                f"{entry.source}: has changed since it was read, or cannot be read: {error.strerror or error}"
            ) from error
