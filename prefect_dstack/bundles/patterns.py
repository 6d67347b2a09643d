"""The patterns of `.gitignore` files, as Git understands them.

A library that says what a whole list of patterns makes of a path does not do here: it takes `!build` to bring
back whatever is below `build`, while Git asks for each directory on the way, and only about itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Pattern", "parse_patterns"]

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_TOKEN = re.compile(
    r"""(?P<anything> (?:^|(?<=/)) \*{2,} (?:/|$) )
      | (?P<stars> \*+ )
      | (?P<one> \? )
      | \[ (?P<no> [!^]?+ ) (?P<members> \]?+ (?: \[:\w+:\] | \\. | [^\]\\] )* ) \]
      | \\ (?P<quoted> . )
      | (?P<plain> [^\[\\*?] )
    """,
    re.VERBOSE | re.DOTALL,
)
_MEMBER = re.compile(
    r"\[:(?P<name>\w+):\] | \\?(?P<first>.) (?: - \\?(?P<last> (?<=\\) . | [^\]] ) )?", re.VERBOSE | re.DOTALL
)


class Pattern(NamedTuple):
    """One line of an ignore file.

    Attributes:
        expression: What the path, or the name, must match as a whole.
        ignores: Whether it leaves out what it matches, or brings it back.
        only_directories: Whether it is about directories only.
        anywhere: Whether it is about names, in whatever directory.
    """

    expression: re.Pattern[str]
    ignores: bool
    only_directories: bool
    anywhere: bool

    def matches(self, path: str, *, is_directory: bool) -> bool:
        """Return whether it is about a path itself, not about a directory above.

        Args:
            path: Relative to the directory of the ignore file.
            is_directory: Whether it is a directory.
        """
        if self.only_directories and not is_directory:
            return False
        return self.expression.fullmatch(path.rpartition("/")[2] if self.anywhere else path) is not None


def parse_patterns(lines: Iterable[str]) -> tuple[Pattern, ...]:
    """Read the lines of an ignore file. One that is no pattern matches nothing, as in Git.

    Args:
        lines: Without their ends.

    Returns:
        The patterns, the last one first: the first that matches decides.
    """
    patterns: list[Pattern] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            patterns.insert(0, _parse(line))
    return tuple(patterns)


def _parse(line: str) -> Pattern:
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    if line.startswith("#"):
        raise ValueError("a comment")
    ignores = not line.startswith("!")
    text = line if ignores else line[1:]
    only_directories = text.endswith("/")
    text = text.removesuffix("/")
    anywhere = "/" not in text
    text = text.removeprefix("/")
    if not text:
        raise ValueError("empty")
    return Pattern(re.compile(_translate(text), re.DOTALL), ignores, only_directories, anywhere)


def _translate(text: str) -> str:
    expression = ""
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError("a bracket without its end, or nothing after a backslash")
        position = token.end()
        if token["anything"]:
            expression += "(?:.*/)?" if token["anything"].endswith("/") else ".*"
        elif token["stars"]:
            expression += "[^/]*"
        elif token["one"]:
            expression += "[^/]"
        elif token["members"]:
            expression += _bracket(token["members"], negated=bool(token["no"]))
        else:
            expression += re.escape(token["quoted"] or token["plain"])
    return expression


def _bracket(members: str, *, negated: bool) -> str:
    inside = ""
    for member in _MEMBER.finditer(members):
        if member["name"]:
            if member["name"] not in _CLASSES:
                raise ValueError("no class of characters")
            inside += _CLASSES[member["name"]]
        elif member["last"] is None:
            inside += re.escape(member["first"])
        elif member["first"] <= member["last"]:
            inside += f"{re.escape(member['first'])}-{re.escape(member['last'])}"
    if negated:
        return f"[^/{inside}]"
    return f"(?!/)[{inside}]" if inside else "(?!)"
