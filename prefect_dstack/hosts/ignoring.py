"""Which files of a directory `.gitignore` files leave out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

__all__ = ["IGNORE_FILES", "kept"]

IGNORE_FILES = (".gitignore", ".dstackignore")


class _Rules:
    """The patterns of one directory, for paths below it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        lines: list[str] = []
        for name in IGNORE_FILES:
            path = directory / name
            if path.is_file():
                lines += filter(_is_valid, path.read_text(errors="replace").splitlines())
        self.spec = GitIgnoreSpec.from_lines(lines)
        self.empty = not lines

    def ignores(self, path: Path, *, is_directory: bool) -> bool | None:
        """Tell what these patterns say of a path; None: nothing."""
        relative = path.relative_to(self.directory).as_posix()
        return self.spec.check_file(f"{relative}/" if is_directory else relative).include


def kept(root: Path) -> Iterator[Path]:
    """Walk a directory as Git would, leaving out `.git` and what is ignored.

    The ignore files of the directories above count too, up to the top of the Git repository. A directory that
    is named to be copied although they ignore it is copied all the same.

    Args:
        root: The directory.

    Yields:
        Paths below it, directories before what is in them, in order. Symbolic links are not followed.
    """
    above: list[_Rules] = []
    if not (root / ".git").exists():
        for directory in root.parents:
            above.insert(0, _Rules(directory))
            if (directory / ".git").exists():
                break
        else:
            above = []
    if _ignored(above, root, is_directory=True):
        above = []
    yield from _walk(root, above)


def _is_valid(line: str) -> bool:
    """Tell whether a line is a pattern; one that is not matches nothing, as in Git."""
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def _walk(directory: Path, above: list[_Rules]) -> Iterator[Path]:
    here = _Rules(directory)
    rules = above if here.empty else [*above, here]
    for path in sorted(directory.iterdir()):
        is_directory = path.is_dir() and not path.is_symlink()
        if path.name == ".git" or _ignored(rules, path, is_directory=is_directory):
            continue
        yield path
        if is_directory:
            yield from _walk(path, rules)


def _ignored(rules: list[_Rules], path: Path, *, is_directory: bool) -> bool:
    for rule in reversed(rules):
        verdict = rule.ignores(path, is_directory=is_directory)
        if verdict is not None:
            return verdict
    return False
