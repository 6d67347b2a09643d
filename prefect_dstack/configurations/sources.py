"""Where a configuration comes from: a file, YAML text or a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_dstack.configurations.interpolation import Path as DataPath
from prefect_dstack.configurations.problems import printable_source
from prefect_dstack.configurations.yaml_source import DEEPEST, LARGEST_FILE, MOST_VALUES, Document, read_yaml
from prefect_dstack.errors import ConfigurationError

FILE_SUFFIXES = (".dstack.yml", ".dstack.yaml", ".yml", ".yaml")
_LONGEST_PATH = 4096
_TYPE_KEY = re.compile(r"\btype\b.*:|^\s*\{", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """What was read, and what it says about the configuration.

    Attributes:
        document: Data and lines.
        directory: What relative paths start from; None for the current directory.
        name: A name made from the file's, or None.
        is_written: Whether a person wrote it as YAML (and may want a default profile).
        is_file: Whether it was read from a file.
    """

    document: Document
    directory: Path | None
    name: str | None
    is_written: bool
    is_file: bool = False


def open_source(source: str | Path | Mapping[str, Any]) -> Source:
    """Read a file, YAML text or a mapping.

    Args:
        source: A path, YAML text, or a mapping.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if isinstance(source, Mapping):
        return Source(Document(_plain(source), "<mapping>"), None, None, is_written=False)
    if isinstance(source, str):
        if "\n" in source or "\r" in source:
            return Source(read_yaml(source, "<text>"), None, None, is_written=True)
        inline = _inline(source)
        if inline is not None:
            return Source(inline, None, None, is_written=True)
    return _open_file(source)


def _inline(text: str) -> Document | None:
    if not _TYPE_KEY.search(text):
        return None
    try:
        document = read_yaml(text, "<text>")
    except ConfigurationError:
        if text.lstrip().startswith("{"):
            raise
        return None
    return document if isinstance(document.data, dict) and "type" in document.data else None


def _open_file(source: str | Path) -> Source:
    name = printable_source(str(source))
    if not str(source).strip():
        raise ConfigurationError("no configuration: give a file, YAML text, a mapping or a model")
    text = read_text(source)
    path = Path(source).absolute()
    return Source(read_yaml(text, name), path.parent, name_from_file(path), is_written=True, is_file=True)


def read_text(path: str | Path) -> str:
    """Read a text file of UTF-8 and at most 1 MiB.

    Raises:
        ConfigurationError: It is missing, a directory, unreadable, too large or not UTF-8.
    """
    name = printable_source(str(path))
    if "\0" in str(path) or len(str(path)) > _LONGEST_PATH:
        raise ConfigurationError("is neither the path of a file nor YAML text", source=name)
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigurationError("no such file", source=name) from None
    except IsADirectoryError:
        default = Path(path) / ".dstack.yml"
        hint = f", for example {printable_source(str(default))}" if default.is_file() else ""
        raise ConfigurationError(f"is a directory; name a file in it{hint}", source=name) from None
    except PermissionError:
        raise ConfigurationError("cannot be read: permission denied", source=name) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ConfigurationError(f"cannot be read: {reason}", source=name) from None
    if len(content) > LARGEST_FILE:
        raise ConfigurationError("is larger than 1 MiB; a configuration is a few lines", source=name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError("is not UTF-8 text; save it as UTF-8", source=name, line=line) from None


def name_from_file(path: Path) -> str | None:
    """Derive a name from a file's: `hello.dstack.yml` gives `hello`, `.dstack.yml` its directory's name."""
    for suffix in FILE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            stem = path.name[: -len(suffix)]
            return slug(stem or path.parent.name)
    return slug(path.stem)


def slug(text: str) -> str | None:
    """Derive a valid name from any text, or return None if no part of it can be used."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("-0123456789")
    return words[:40].rstrip("-") or None


def _plain(data: Any, depth: int = 0, count: list[int] | None = None) -> Any:
    """Copy a mapping to plain dicts and lists within the bounds of files."""
    count = [0] if count is None else count
    count[0] += 1
    if depth > DEEPEST or count[0] > MOST_VALUES:
        raise ConfigurationError("is too large or too deep for a configuration", source="<mapping>")
    if isinstance(data, Mapping):
        return {
            key if isinstance(key, str) else str(key): _plain(value, depth + 1, count)
            for key, value in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [_plain(value, depth + 1, count) for value in data]
    return data


def check_texts(data: Any, path: DataPath = ()) -> DataPath | None:
    """Return the path of the first text that has a NUL or cannot be written as UTF-8, or None."""
    if isinstance(data, str):
        try:
            data.encode("utf-8")
        except UnicodeEncodeError:
            return path
        return path if "\0" in data else None
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found = check_texts(key, (*path, key)) or check_texts(value, (*path, key))
        if found is not None:
            return found
    return None
