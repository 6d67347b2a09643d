"""Bundles as single files, to be kept elsewhere."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from prefect_dstack.bundles.digests import file_digest, open_file
from prefect_dstack.bundles.entries import Bundle, Entry, bundle_digest, kept_mode, stored_entries

__all__ = ["pack", "unpack"]


def pack(entries: Iterable[Entry], archive: Path) -> None:
    """Write the files of a bundle into an archive.

    It is not compressed: what is large in a bundle, such as weights, does not get smaller, and nobody has to
    fear that a small archive fills a disk.

    Args:
        entries: What `stored_entries` returned.
        archive: The archive to write.

    Raises:
        OSError: If something cannot be read or written.
    """
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as opened:
        for entry in entries:
            member = tarfile.TarInfo(entry.path)
            member.mode, member.mtime = entry.mode, entry.modified_ns // 1_000_000_000
            if entry.kind == "file":
                with open_file(entry.source) as content:
                    member.size = entry.size
                    opened.addfile(member, content)
            else:
                member.type = tarfile.DIRTYPE if entry.kind == "directory" else tarfile.SYMTYPE
                member.linkname = entry.target
                opened.addfile(member)


def unpack(archive: Path, directory: Path) -> Bundle:
    """Read an archive that anybody may have written.

    Args:
        archive: The archive.
        directory: Where its files go; made for them.

    Returns:
        What is in it, with the digest of that.

    Raises:
        ValueError: If it is no archive of a bundle, or something in it would land elsewhere.
        OSError: If the files cannot be written.
    """
    directory.mkdir()
    try:
        with tarfile.open(archive, "r:") as opened:
            _unpack(opened, directory)
    except (tarfile.TarError, FileExistsError, OverflowError) as error:
        raise ValueError(str(error)) from error
    entries = tuple(
        dataclasses.replace(entry, digest=file_digest(entry.source)[0]) if entry.kind == "file" else entry
        for entry in stored_entries(directory)
    )
    return Bundle(bundle_digest(entries), entries)


def _unpack(opened: tarfile.TarFile, directory: Path) -> None:
    # Nothing is written through a link, wherever it leads.
    directories = {PurePosixPath()}
    for member in opened:
        tarfile.data_filter(member, str(directory))
        path = PurePosixPath(member.name)
        if path.parent not in directories or path.name in ("", ".."):
            raise ValueError(f"{member.name!r} is in no directory of it")
        target, mode = directory / path, kept_mode(member.mode)
        if member.isdir():
            target.mkdir()
            target.chmod(mode)
            directories.add(path)
        elif member.issym():
            target.symlink_to(member.linkname)
        elif member.isreg() and not member.issparse():
            content = opened.extractfile(member)
            with target.open("xb") as file:
                if content is not None:
                    shutil.copyfileobj(content, file)
                os.fchmod(file.fileno(), mode)
            os.utime(target, (member.mtime, member.mtime))
        else:
            raise ValueError(f"{member.name!r} is neither a file, a directory nor a symbolic link")
