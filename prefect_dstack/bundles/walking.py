"""Walks a directory as Git would, without what is ignored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from prefect_dstack.bundles.entries import Entry, entry_of
from prefect_dstack.bundles.ignoring import IgnoreRules
from prefect_dstack.errors import ConfigurationError

__all__ = ["cannot_read", "exact_path", "walk"]


def walk(
    root: Path,
    *,
    exclude: Collection[str] = (),
    ignored: list[str] | None = None,
    key: str | None = None,
    whole: bool = False,
) -> Iterator[Entry]:
    """Find what is to be copied of a directory.

    Left out are `.git`, what ignore files say, virtual environments (their programs lead back to where they
    were made), sockets, pipes and devices. Nothing below a directory that is left out is looked at. What
    vanishes meanwhile was never there.

    Args:
        root: The directory, absolute, without symbolic links.
        exclude: Paths from `exact_path` to leave out too.
        ignored: Gets the names in the directory itself that are left out.
        key: Which key of the configuration named it.
        whole: Whether ignore files do not count, as in what Git has checked out.

    Yields:
        Entries, a directory before what is in it; files without digests. Symbolic links are not followed.

    Raises:
        ConfigurationError: If a directory or an ignore file cannot be read.
    """
    waiting: list[tuple[Entry | None, str, IgnoreRules]] = []
    try:
        first = IgnoreRules(reads_files=False) if whole else IgnoreRules.above(str(root))
        waiting.append((None, str(root), first))
        while waiting:
            own, directory, above = waiting.pop()
            try:
                rules = above.below(directory)
                kept = list(_kept(own, directory, rules, exclude, ignored))
            except (FileNotFoundError, NotADirectoryError):
                if own is None:
                    raise
                continue
            if own is not None:
                # Caches of tools ask to be ignored, with a file in them: one that is new is no change.
                if not kept and rules is not above:
                    continue
                yield own
            for entry in kept:
                if entry.kind == "directory":
                    waiting.append((entry, entry.source, rules))
                else:
                    yield entry
    except OSError as error:
        raise cannot_read(error, str(root), key) from error


def _kept(
    own: Entry | None, directory: str, rules: IgnoreRules, exclude: Collection[str], ignored: list[str] | None
) -> Iterator[Entry]:
    prefix = f"{own.path}/" if own else ""
    with os.scandir(directory) as listing:
        for item in listing:
            if _is_left_out(item, rules, exclude):
                if own is None and ignored is not None:
                    ignored.append(item.name)
                continue
            with contextlib.suppress(FileNotFoundError):
                entry = entry_of(prefix + item.name, item.path, item.stat(follow_symlinks=False))
                if entry is not None:
                    yield entry


def _is_left_out(item: os.DirEntry[str], rules: IgnoreRules, exclude: Collection[str]) -> bool:
    if item.name == ".git" or item.path in exclude:
        return True
    is_directory = item.is_dir(follow_symlinks=False)
    verdict = rules.ignore(item.path, is_directory=is_directory)
    if verdict is None and is_directory:
        return os.path.lexists(f"{item.path}/pyvenv.cfg")
    return bool(verdict)


def exact_path(path: Path) -> str:
    """Return an absolute path without symbolic links above its last part, as `walk` compares it."""
    absolute = path.expanduser().absolute()
    return str(absolute.parent.resolve() / absolute.name)


def cannot_read(error: OSError, path: str, key: str | None = None) -> ConfigurationError:
    """Return the error for something to be copied that cannot be read."""
    return ConfigurationError(
        f"{error.filename or path}: cannot be read: {error.strerror or error}: make it readable, or name "
        "it in .dstackignore",
        key=key,
    )
