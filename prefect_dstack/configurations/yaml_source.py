"""YAML text to data, with the line of everything, and nothing else that YAML can do.

The texts of numbers are kept as typed, because `3.10` is a Python version and `8001:8000` a pair of ports.
Truth values, numbers and nothing are those of YAML 1.2's core schema. Anchors, aliases and `<<` work within
bounds; tags that would build objects do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.scalars import FloatAsTyped, IntAsTyped
from prefect_dstack.errors import ConfigurationError

LARGEST_FILE = 1024 * 1024
"""Bytes."""
DEEPEST = 32
MOST_VALUES = 20_000

_NOTHING = re.compile(r"|~|null|Null|NULL")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_BASED_INTEGER = re.compile(r"0o[0-7]{1,18}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,4})?")
_TEXT_TAG = "tag:yaml.org,2002:str"
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")
}
_EXPLAINED = {
    "mapping values are not allowed": "a key is not expected here; check the indentation, "
    "and put quotes around a value that has ': ' in it",
    "could not find expected ':'": "a line that is neither 'key: value' nor '- item'",
    "expected <block end>": "the indentation does not match the lines above",
    "did not find expected": "the brackets or the indentation do not match",
    "while scanning a quoted scalar": "a quotation mark is not closed",
    "unexpected end of stream": "a quotation mark or a bracket is not closed",
    "found undefined alias": "an alias (*name) without its anchor (&name)",
    "special characters are not allowed": "a control character that YAML does not allow",
}

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """Data and where it stands.

    Attributes:
        data: A mapping, a list or a scalar.
        source: The file, `<text>` or `<mapping>`.
        lines: One-based line of the key (or list item) at each path.
        value_lines: One-based line at which the value at each path begins.
    """

    data: Any
    source: str
    lines: dict[Path, int] = field(default_factory=dict)
    value_lines: dict[Path, int] = field(default_factory=dict)


def read_yaml(text: str, source: str) -> Document:
    """Read one YAML document.

    Args:
        text: The text of a file.
        source: What to call it in messages.

    Returns:
        Its data and lines.

    Raises:
        ConfigurationError: It is not one YAML document within the bounds.
    """
    if len(text) > LARGEST_FILE:
        raise ConfigurationError("is larger than 1 MiB; a configuration is a few lines", source=source)
    reader = _Reader(source)
    try:
        root = reader.read(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigurationError(
            _explain(error), source=source, line=None if mark is None else mark.line + 1
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(
            f"not valid YAML: {_EXPLAINED['special characters are not allowed']} ({error.character:#04x})",
            source=source,
            line=line,
        ) from None
    except (ValueError, OverflowError, IndexError, yaml.YAMLError):
        raise ConfigurationError("not valid YAML", source=source) from None
    document = Document(None, source)
    data = root.build((), document) if root is not None else None
    return Document(data, source, document.lines, document.value_lines)


def _explain(error: yaml.MarkedYAMLError) -> str:
    technical = " ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in technical:
        return "not valid YAML: tabs cannot be used for indentation, use spaces"
    for known, explained in _EXPLAINED.items():
        if known in technical:
            return f"not valid YAML: {explained}"
    return f"not valid YAML: {show(error.problem or 'unreadable', 200)[1:-1]}"


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


@dataclass
class _Node:
    """A scalar, list or mapping; `size` counts its values (long texts for more), through aliases too."""

    line: int
    value: Any
    size: int = 1
    kind: str = "scalar"

    def build(self, path: Path, document: Document) -> Any:
        document.value_lines[path] = self.line
        if self.kind == "scalar":
            return self.value
        items = enumerate(self.value) if self.kind == "list" else self.value.items()
        built: dict[str | int, Any] = {}
        for key, (line, node) in items:
            place = (*path, key)
            document.lines[place] = line
            built[key] = node.build(place, document)
        return list(built.values()) if self.kind == "list" else built


class _Reader:
    """Builds nodes from the events of PyYAML's parser, without recursion into anything unbounded."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._anchors: dict[str, _Node] = {}

    def read(self, events: Iterator[Any]) -> _Node | None:
        root: _Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._refuse("several YAML documents; keep one, and remove the '---'", event)
                root = self._node(next(events), events, 0)
                self._anchors.clear()
        return root

    def _refuse(self, problem: str, event: Any) -> NoReturn:
        raise ConfigurationError(problem, source=self._source, line=_line(event))

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        if depth > DEEPEST:
            self._refuse(f"lists and mappings within each other more than {DEEPEST} deep", event)
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                self._refuse(f"not valid YAML: {_EXPLAINED['found undefined alias']}", event)
            return self._anchors[event.anchor]
        if getattr(event, "tag", None) not in (None, "!", *_PLAIN_TAGS):
            self._refuse(f"the YAML tag {show(event.tag)} is not supported; remove it", event)
        if isinstance(event, yaml.SequenceStartEvent):
            node = self._list(line, events, depth)
        elif isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(line, events, depth)
        else:
            node = _Node(line, self._scalar(event), 1 + len(event.value) // 256)
        if node.size > MOST_VALUES:
            self._refuse(f"more than {MOST_VALUES} values, counting aliases; write less", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _list(self, line: int, events: Iterator[Any], depth: int) -> _Node:
        items: list[_Node] = []
        size = 1
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, depth + 1))
            size += items[-1].size
            if size > MOST_VALUES:
                break
        return _Node(line, [(item.line, item) for item in items], size, "list")

    def _mapping(self, line: int, events: Iterator[Any], depth: int) -> _Node:
        entries: dict[str, tuple[int, _Node]] = {}
        merged: dict[str, tuple[int, _Node]] = {}
        size = 1
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse("a key must be one word, not a list, a mapping or an alias", event)
            key, key_line = event.value, _line(event)
            node = self._node(next(events), events, depth + 1)
            size += node.size
            if size > MOST_VALUES:
                break
            if key == "<<" and event.style is None:
                for other in self._merged(node, event):
                    merged = {**other.value, **merged}
            elif key in entries:
                self._refuse(f"the key {show(key)} is there twice; keep one", event)
            else:
                entries[key] = (key_line, node)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Node(key_line, key)
        return _Node(line, {**merged, **entries}, size, "mapping")

    def _merged(self, node: _Node, event: Any) -> list[_Node]:
        nodes = [item for _, item in node.value] if node.kind == "list" else [node]
        if any(other.kind != "mapping" for other in nodes):
            self._refuse("'<<' merges mappings only", event)
        return nodes

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag == "!" or (event.tag is None and not event.implicit[0]):
            return text
        kind = _PLAIN_TAGS.get(event.tag) if event.tag is not None else None
        value = text if kind == "str" else resolve_scalar(text)
        fits = {"int": int, "float": (int, float), "bool": bool, "null": type(None)}
        if kind in fits and not isinstance(value, fits[kind]):  # type: ignore[arg-type]
            self._refuse(f"{show(text)} does not fit its YAML tag", event)
        return value


def resolve_scalar(text: str) -> Any:
    """Return what an unquoted YAML scalar stands for: nothing, a truth value, a number as typed, or text."""
    if _NOTHING.fullmatch(text):
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if _INTEGER.fullmatch(text):
        return _as_typed(IntAsTyped(text), text)
    if _BASED_INTEGER.fullmatch(text):
        return _as_typed(IntAsTyped(text, 0), text)
    if len(text) <= 64 and _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return _as_typed(FloatAsTyped(text), text)
    return text


def _as_typed(number: Any, text: str) -> Any:
    number.text = text
    return number
