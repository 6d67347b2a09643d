"""Values inside HAProxy's configuration text and its command line."""

from __future__ import annotations

import re

__all__ = ["format_quote", "quote", "word"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_WORD = re.compile(r"[A-Za-z0-9_.:/*\[\]-]+")


def quote(value: str) -> str:
    r"""Quote a value as one word of the configuration, whatever it holds.

    Args:
        value: Text without control characters but newlines and tabs.

    Returns:
        The word, in single quotes, on one line.

    Raises:
        ValueError: If it holds another control character; models let none through.

    Example:
        >>> print(quote("it's 100 %"))
        'it'\''s 100 %'
    """
    if _CONTROL.search(value):
        raise ValueError("control characters cannot be part of a gateway's configuration")
    return "'" + value.replace("'", r"'\''").replace("\n", r"'\n'") + "'"


def format_quote(value: str) -> str:
    """Quote a value as one word where HAProxy expects a log format.

    Args:
        value: As of `quote`.

    Returns:
        The word.

    Example:
        >>> print(format_quote("100 %[src]"))
        '100 %%[src]'
    """
    return quote(value.replace("%", "%%"))


def word(value: str) -> str:
    """Pass a value that is one plain word already, for the runtime API, which knows no quotes.

    Args:
        value: Letters, digits and `_.:/*[]-`.

    Returns:
        The same.

    Raises:
        ValueError: If it has any other character; models let none through.
    """
    if not _WORD.fullmatch(value):
        raise ValueError(f"not a word of the gateway's command line: {value!r}")
    return value
