"""How values, words and lists appear in one-line error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN_CHARACTERS = 60


def show(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Show a value that a person typed, on one line, shortened.

    Args:
        value: Any value; text is shown through `repr`, so control characters cannot break the line.
        limit: Greatest number of characters shown.

    Returns:
        A printable ASCII-safe description of at most about `limit` characters.
    """
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = ascii(value if len(value) <= limit else value[:limit])
        return quoted if len(value) <= limit else f"{quoted[: limit + 1]}… ({len(value)} characters)"
    text = getattr(value, "text", None) or str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` is most probably a slip of, or None."""
    found = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def one_of(words: Iterable[object]) -> str:
    """Join words as a person would: `a, b or c`."""
    texts = [str(word) for word in words]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def dotted(path: Iterable[str | int]) -> str:
    """Join a path to the form of `probes.0.url`, safe to print."""
    return ".".join(_printable(part) for part in path)


def _printable(part: str | int) -> str:
    if isinstance(part, int) or (part.isprintable() and part.isascii() and len(part) <= SHOWN_CHARACTERS):
        return str(part)
    return show(part)
