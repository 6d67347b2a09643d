"""Combines several bundles into one."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from dataclasses import replace

from prefect_dstack.bundles.entries import Bundle, Entry, bundle_digest
from prefect_dstack.errors import ConfigurationError

__all__ = ["arrange"]


def arrange(parts: Iterable[tuple[str, Iterable[Entry]]], ignored: Iterable[str] = ()) -> Bundle:
    """Combine the entries of several bundles into one.

    Args:
        parts: Directories of the new bundle (`.` is the bundle itself), each with the entries that go there;
            an entry `.` takes the place of the directory. Of two files with the same path, the later stays.
        ignored: The names that were left out; see `Bundle.ignored`.

    Returns:
        The bundle.

    Raises:
        ConfigurationError: If something is to be a file and a directory at once.

    Example:
        >>> arrange([("src", collect(Path("repository")).entries)])  # doctest: +SKIP
    """
    found: dict[str, Entry] = {}
    for target, entries in parts:
        directory = posixpath.normpath(target)
        for entry in entries:
            path = posixpath.normpath(posixpath.join(directory, entry.path))
            _add_directories(found, path)
            before = found.get(path)
            if before is not None and "directory" in (before.kind, entry.kind) and before.kind != entry.kind:
                raise _cannot_be_both(path)
            found[path] = replace(entry, path=path)
    ordered = sorted(found.values(), key=lambda entry: os.fsencode(entry.path))
    return Bundle(bundle_digest(ordered), tuple(ordered), tuple(ignored))


def _add_directories(found: dict[str, Entry], path: str) -> None:
    for end, character in enumerate(path):
        if character == "/":
            above = found.setdefault(path[:end], Entry(path[:end], "directory", "", 0o755))
            if above.kind != "directory":
                raise _cannot_be_both(path[:end])


def _cannot_be_both(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path}: would be a file and a directory at once: give one of them another path"
    )
