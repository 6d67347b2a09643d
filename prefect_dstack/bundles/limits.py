"""How much a revision may bring along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from prefect_dstack.bundles.entries import Entry
from prefect_dstack.errors import ConfigurationError

__all__ = ["Limit", "check_limit"]

SHOWN = 3


class Limit(NamedTuple):
    """The most that the files of a revision may come to.

    Attributes:
        size: Bytes.
        files: Their number; directories count too.
    """

    size: int = 500 * 1024**2
    files: int = 10_000


def check_limit(
    entries: Sequence[Entry], limit: Limit, place: str, *, complete: bool = True, key: str | None = None
) -> None:
    """Refuse files that come to too much.

    Args:
        entries: Those found.
        limit: The most that they may come to.
        place: Their directory.
        complete: Whether these are all.
        key: Which key of the configuration named them.

    Raises:
        ConfigurationError: With the biggest of them, and what to do.
    """
    size = sum(entry.size for entry in entries)
    if complete and size <= limit.size and len(entries) <= limit.files:
        return
    by_size = size > limit.size
    biggest = _biggest(entries, by_size=by_size)
    shown = ", ".join(f"{path} ({_size(much) if by_size else f'{much:,} files'})" for path, much in biggest)
    more = "" if complete else "more than "
    found = f"its files come to {more}{_size(size)} in {len(entries):,} files and directories"
    raise ConfigurationError(
        f"{place}: {found}, "
        f"and a revision keeps a copy of at most {_size(limit.size)} in {limit.files:,}; "
        f"the most is in {shown}: name what it does not need in .dstackignore there, or keep large models "
        "elsewhere and refer to them by their absolute path",
        key=key,
    )


def _biggest(entries: Sequence[Entry], *, by_size: bool) -> list[tuple[str, int]]:
    """Find the paths that are worth naming: a directory, unless one thing in it makes up most of it."""
    totals: Counter[str] = Counter()
    parts: dict[str, list[str]] = {}
    for entry in entries:
        much = entry.size if by_size else 1
        path = entry.path
        parts.setdefault(_parent(path), []).append(path)
        while path:
            totals[path] += much
            path = _parent(path)
    named = parts.get("", [])
    while True:
        named = sorted(named, key=lambda path: (-totals[path], path))[:SHOWN]
        for path in named:
            inside = parts.get(path, [])
            if any(totals[part] * 2 > totals[path] for part in inside) or (len(named) == 1 and inside):
                named = [other for other in named if other != path] + inside
                break
        else:
            return [(path, totals[path]) for path in named if totals[path]]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _size(size: int) -> str:
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("kB", 1024)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
