"""Files that a run brings along, as one tar stream to unpack at `/` of its container."""

from __future__ import annotations

import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.ignoring import kept

__all__ = ["pack_files"]

# Larger archives go to the disk.
IN_MEMORY = 16 * 1024**2


def pack_files(
    files: Sequence[FileMapping],
    directory: Path,
    working_dir: str = "/",
    *,
    owner: tuple[int, int] = (0, 0),
    home: str | None = None,
) -> IO[bytes]:
    """Pack files and directories for a container.

    Directories are packed without what `.gitignore` leaves out. Modes and times are kept. A symbolic link
    stays one if it leads to something in the same directory; one that leads out of it is an error.

    Args:
        files: What goes where.
        directory: What relative local paths start from.
        working_dir: What relative paths in the container start from, absolute.
        owner: User and group ids that own the files there.
        home: What `~/` stands for in the container; None if that is not known.

    Returns:
        A tar archive whose paths are relative to `/`, at its beginning; the caller closes it.

    Raises:
        ConfigurationError: If a file is missing, cannot be read, or a link leads astray.

    Example:
        >>> with pack_files(mappings, Path("."), "/app") as archive:  # doctest: +SKIP
        ...     container.put_archive("/", archive)
    """
    spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        with tarfile.open(fileobj=spool, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for number, mapping in enumerate(files):
                _pack(archive, mapping, f"files.{number}", directory, working_dir, owner, home)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool


def _pack(
    archive: tarfile.TarFile,
    mapping: FileMapping,
    key: str,
    directory: Path,
    working_dir: str,
    owner: tuple[int, int],
    home: str | None,
) -> None:
    source = directory / Path(mapping.local_path).expanduser()
    target = _target(mapping.path, working_dir, key, home)
    try:
        root = source.resolve(strict=True)
        if not root.is_dir():
            _add(archive, root, target, owner)
            return
        # The directory itself is not packed: it may be one that the image has, with its own mode.
        for path in kept(root):
            name = target / path.relative_to(root).as_posix()
            if path.is_symlink():
                _check_link(path, root, key)
            _add(archive, path, name, owner)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{error.filename or source}: there is no such file", key=key) from error
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or source}: cannot be read: {error.strerror or error}", key=key
        ) from error


def _target(path: str, working_dir: str, key: str, home: str | None) -> PurePosixPath:
    if home and (path == "~" or path.startswith("~/")):
        path = home.rstrip("/") + path[1:] or "/"
    if path.startswith("~"):
        raise ConfigurationError(f"{path}: give the whole path that it shall have in the container", key=key)
    target = PurePosixPath("/", working_dir, path)
    if ".." in target.parts:
        raise ConfigurationError(f"{path}: must not have '..' in it", key=key)
    # Of a path that begins with two slashes, pathlib keeps both.
    return PurePosixPath(*target.parts[1:])


def _check_link(path: Path, root: Path, key: str) -> None:
    target = path.readlink()
    if target.is_absolute() or not (path.parent / target).resolve().is_relative_to(root):
        raise ConfigurationError(
            f"{path}: the link leads out of {root}, to {target}: put it into .gitignore, "
            "or copy what it leads to",
            key=key,
        )


def _add(archive: tarfile.TarFile, path: Path, name: PurePosixPath, owner: tuple[int, int]) -> None:
    status = path.lstat()
    mode = status.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
        return  # a socket, a pipe or a device means nothing elsewhere
    member = archive.gettarinfo(path, str(name))
    member.uid, member.gid = owner
    member.uname = member.gname = ""
    if stat.S_ISREG(mode):
        # Of two names of one file, each is packed whole: the other may be left out, or unpacked elsewhere.
        member.type, member.linkname, member.size = tarfile.REGTYPE, "", status.st_size
        with path.open("rb") as content:
            archive.addfile(member, content)
    else:
        archive.addfile(member)
