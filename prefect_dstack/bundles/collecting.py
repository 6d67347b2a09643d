"""Reads the files of a configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from prefect_dstack.bundles.digests import RememberedDigests
from prefect_dstack.bundles.entries import Bundle, Entry, bundle_digest, entry_of
from prefect_dstack.bundles.limits import Limit, check_limit
from prefect_dstack.bundles.walking import cannot_read, exact_path, walk
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError

__all__ = ["collect", "collect_files"]

# How far beyond the limit files are counted for the message: somebody's whole home would take minutes.
COUNTED = 10


def collect(
    directory: Path,
    *,
    limit: Limit | None = None,
    exclude: Iterable[Path] = (),
    cache: Path | None = None,
    whole: bool = False,
    key: str | None = None,
) -> Bundle:
    """Read the files that the processes of a revision start among.

    Symbolic links stay links: one to something in the bundle is made relative, so that it leads to the copy;
    any other is made absolute, so that it leads where it did.

    Args:
        directory: The configuration's directory.
        limit: The most that they may come to.
        exclude: Paths to leave out too: the configuration itself, our own home.
        cache: The directory in which digests are remembered, `BundleStore.cache`.
        whole: Whether ignore files do not count, as in what Git has checked out.
        key: Which key of the configuration named the directory, for messages.

    Returns:
        The files, to be compared and stored.

    Raises:
        ConfigurationError: If there is too much, or something cannot be read.

    Example:
        >>> bundle = collect(Path("app"))  # doctest: +SKIP
        >>> BundleStore(Path("bundles")).put(bundle)  # doctest: +SKIP
    """
    root = _resolved(directory, key)
    if not root.is_dir():
        raise ConfigurationError(f"{directory}: is not a directory", key=key)
    ignored: list[str] = []
    excluded = {exact_path(path) for path in exclude}
    found = walk(root, exclude=excluded, ignored=ignored, key=key, whole=whole)
    entries = _limited(found, limit or Limit(), str(root), key)
    known = {entry.path for entry in entries}
    entries = [
        dataclasses.replace(entry, target=_target(entry, str(root), known)) if entry.kind == "link" else entry
        for entry in entries
    ]
    return _bundle(entries, ignored, _cache_file(cache, [root]))


def collect_files(
    files: Sequence[FileMapping],
    directory: Path,
    *,
    limit: Limit | None = None,
    exclude: Iterable[Path] = (),
    cache: Path | None = None,
) -> Bundle:
    """Read the files that containers get. What `files.2` names is in the bundle as `2`.

    A symbolic link must lead to something in the same directory; one that is itself named is read as what it
    leads to.

    Args:
        files: What goes where.
        directory: What relative local paths start from.
        limit: The most that all together may come to.
        exclude: Paths to leave out too, where a directory is named that has them.
        cache: The directory in which digests are remembered, `BundleStore.cache`.

    Returns:
        The files, to be compared and stored.

    Raises:
        ConfigurationError: If there is too much, something is missing or cannot be read, or a link leads out.
    """
    excluded = {exact_path(path) for path in exclude}
    roots = [
        _resolved(directory / Path(mapping.local_path).expanduser(), f"files.{number}")
        for number, mapping in enumerate(files)
    ]
    found = (entry for number, root in enumerate(roots) for entry in _mapped(number, root, excluded))
    entries = _limited(found, limit or Limit(), str(directory), "files")
    return _bundle(entries, [], _cache_file(cache, roots))


def _mapped(number: int, root: Path, exclude: Collection[str]) -> Iterator[Entry]:
    key = f"files.{number}"
    try:
        own = entry_of(str(number), str(root), root.lstat())
    except OSError as error:
        raise cannot_read(error, str(root), key) from error
    if own is None:
        raise ConfigurationError(f"{root}: is neither a file nor a directory", key=key)
    yield own
    if own.kind != "directory":
        return
    for entry in walk(root, exclude=exclude, key=key):
        if entry.kind == "link":
            _check_link(entry, root, key)
        yield dataclasses.replace(entry, path=f"{number}/{entry.path}")


def _resolved(path: Path, key: str | None = None) -> Path:
    try:
        return path.expanduser().resolve(strict=True)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{error.filename or path}: there is no such file", key=key) from error
    except (OSError, RuntimeError) as error:
        raise cannot_read(
            error if isinstance(error, OSError) else OSError(str(error)), str(path), key
        ) from error


def _limited(found: Iterator[Entry], limit: Limit, place: str, key: str | None = None) -> list[Entry]:
    entries: list[Entry] = []
    for entry in found:
        entries.append(entry)
        if len(entries) > limit.files * COUNTED:
            check_limit(entries, limit, place, complete=False, key=key)
    check_limit(entries, limit, place, key=key)
    return entries


def _bundle(entries: Iterable[Entry], ignored: Iterable[str], cache: Path | None) -> Bundle:
    digests = RememberedDigests(cache)
    read = [entry for entry in (_read(entry, digests) for entry in entries) if entry is not None]
    digests.save()
    read.sort(key=lambda entry: os.fsencode(entry.path))
    return Bundle(bundle_digest(read), tuple(read), tuple(sorted(ignored)))


def _read(entry: Entry, digests: RememberedDigests) -> Entry | None:
    if entry.kind != "file":
        return entry
    try:
        digest, status = digests.digest(entry.source)
    except FileNotFoundError:
        return None  # an editor's temporary file, gone since it was found
    except OSError as error:
        raise cannot_read(error, entry.source) from error
    return dataclasses.replace(entry, digest=digest, size=status.st_size, modified_ns=status.st_mtime_ns)


def _target(link: Entry, root: str, known: Collection[str]) -> str:
    """Return where a link must lead in a copy; only its own step counts, not those of links behind it."""
    directory = Path(link.source).parent
    first = directory / link.target
    where = exact_path(first) if first.name not in ("", "..") else os.path.realpath(first)
    inside = where.startswith(f"{root}/") and (where[len(root) + 1 :] in known or not os.path.lexists(where))
    if inside or where == root:
        return os.path.relpath(where, directory)
    return link.target if Path(link.target).is_absolute() else where


def _check_link(link: Entry, root: Path, key: str) -> None:
    target = Path(link.target)
    if target.is_absolute() or not Path(link.source).parent.joinpath(target).resolve().is_relative_to(root):
        raise ConfigurationError(
            f"{link.source}: the link leads out of {root}, to {target}: name it in .dstackignore, or copy "
            "what it leads to",
            key=key,
        )


def _cache_file(cache: Path | None, roots: Iterable[Path]) -> Path | None:
    if cache is None:
        return None
    name = hashlib.sha256(b"\0".join(os.fsencode(root) for root in roots)).hexdigest()[:32]
    return cache / f"{name}.json"
