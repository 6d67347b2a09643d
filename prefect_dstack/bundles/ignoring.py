"""What `.gitignore` and `.dstackignore` files leave out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prefect_dstack.bundles.patterns import Pattern, parse_patterns

__all__ = ["DEFAULT_PATTERNS", "IGNORE_FILES", "IgnoreRules"]

IGNORE_FILES = (".gitignore", ".dstackignore")

# What says how to run an application is no part of it: a change of `replicas` shall not restart replicas.
# An ignore file may bring each back with `!`.
DEFAULT_PATTERNS = (".dstack/", "*.dstack.yml", "*.dstack.yaml", "__pycache__/")


class IgnoreRules:
    """The patterns that hold in one directory: those of its own ignore files, and of the directories above.

    Args:
        levels: From the outermost: a directory with a slash at its end, and its patterns from the last one.
        reads_files: Whether ignore files count.
    """

    def __init__(
        self, levels: tuple[tuple[str, tuple[Pattern, ...]], ...] = (), *, reads_files: bool = True
    ) -> None:
        self._levels = levels
        self._reads_files = reads_files

    @classmethod
    def above(cls, root: str) -> IgnoreRules:
        """Read the ignore files of the directories above one, up to the top of its Git repository.

        A directory that they leave out is wanted all the same if somebody names it, with all that is in it.

        Args:
            root: The directory, absolute, without symbolic links.

        Returns:
            The rules, with those that hold everywhere.

        Raises:
            OSError: If an ignore file cannot be read.
        """
        rules = everywhere = cls(((_prefix(root), parse_patterns(DEFAULT_PATTERNS)),))
        for directory in _directories_above(root):
            rules = rules.below(directory)
        return everywhere if rules.ignore(root, is_directory=True) else rules

    def below(self, directory: str) -> IgnoreRules:
        """Add the rules of a directory.

        Args:
            directory: Its absolute path.

        Returns:
            The rules for what is in it.

        Raises:
            OSError: If an ignore file cannot be read.
        """
        lines: list[str] = []
        for name in IGNORE_FILES if self._reads_files else ():
            path = Path(directory, name)
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="surrogateescape")
                lines += text.removeprefix("\ufeff").split("\n")
        if not lines:
            return self
        return IgnoreRules((*self._levels, (_prefix(directory), parse_patterns(lines))))

    def ignore(self, path: str, *, is_directory: bool) -> bool | None:
        """Return whether a path is left out; None if no pattern is about it.

        Args:
            path: Its absolute path.
            is_directory: Whether it is a directory.
        """
        for prefix, patterns in reversed(self._levels):
            if not path.startswith(prefix):
                continue
            for pattern in patterns:
                if pattern.matches(path[len(prefix) :], is_directory=is_directory):
                    return pattern.ignores
        return None


def _directories_above(root: str) -> Iterable[str]:
    above: list[str] = []
    for directory in (Path(root), *Path(root).parents):
        if os.path.lexists(directory / ".git"):
            return reversed(above)
        above.append(str(directory.parent))
    return ()


def _prefix(directory: str) -> str:
    return directory.rstrip("/") + "/"
