"""Paths as the gateway compares them."""

from __future__ import annotations

import re

__all__ = ["normalised"]

_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")


def normalised(path: str) -> str:
    """Normalize a path as the gateway does (RFC 3986, section 6.2.2).

    Args:
        path: A path with valid percent-encoding or none.

    Returns:
        The path with unreserved characters decoded and the rest of the encoding in upper case.

    Raises:
        ValueError: If a `%` is not followed by two hexadecimal digits.

    Example:
        >>> normalised("/%7euser/a%2fb")
        '/~user/a%2Fb'
    """
    if "%" in _ENCODED.sub("", path):
        raise ValueError("'%' must be followed by two hexadecimal digits")
    return _ENCODED.sub(_decode, path)


def _decode(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else match[0].upper()
