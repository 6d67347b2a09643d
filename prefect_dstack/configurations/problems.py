"""From what pydantic found to one line that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prefect_dstack.configurations.base import PROBLEM
from prefect_dstack.configurations.messages import dotted, nearest, one_of, show
from prefect_dstack.configurations.yaml_source import Document
from prefect_dstack.errors import ConfigurationError

Path = tuple[str | int, ...]
AnyModel = TypeVar("AnyModel", bound=BaseModel)

_NOTHING = "has no value; give it one, or remove the key"
# Of one message: more would not be read.
LONGEST = 450
_PRIVATE_KEYS = {"env", "registry_auth", "ssh_key"}
_MISSING_HINTS = {
    "port": "add 'port: 8000', the port the application listens on",
    "path": "add 'path: …'",
    "metric": "add 'metric: rps'",
    "hosts": "list the hosts under 'hosts'",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Where, in the data as written.
        text: What is wrong and what to do.
        rank: 1 for a missing key, which comes after all else.
        is_count: Whether it is about the number of items in a list.
        instead_of: A key that the person probably meant by this one.
    """

    path: Path
    text: str
    rank: int = 0
    is_count: bool = False
    instead_of: str | None = None


def validate(model: type[AnyModel], data: Mapping[str, Any], document: Document) -> AnyModel:
    """Validate data as a model.

    Args:
        model: The pydantic model.
        data: What to validate.
        document: Where the data was read, for lines.

    Returns:
        The model.

    Raises:
        ConfigurationError: The first problem in the order of the file.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = [
            _problem(model, data, details)
            for details in error.errors(include_url=False, include_context=True)
        ]
    # pydantic may find a list too short after it has left out its bad items.
    items = [problem.path for problem in found if not problem.is_count]
    bad = {path[:length] for path in items for length in range(len(path) + 1)}
    raise first_problem([p for p in found if not (p.is_count and p.path in bad)], document) from None


def first_problem(problems: Iterable[Problem], document: Document) -> ConfigurationError:
    """Return the error to raise for problems: the first in the file, and some of the others."""
    distinct = {(problem.path, problem.text): problem for problem in problems}
    meant = {(*p.path[:-1], p.instead_of) for p in distinct.values() if p.instead_of is not None}
    order = {path: number for number, path in enumerate(document.value_lines)}
    left = [problem for problem in distinct.values() if not (problem.rank and problem.path in meant)]
    left.sort(key=lambda p: (p.rank, line_of(document, p.path) or 0, order.get(p.path, len(order))))
    first = left[0]
    told = [first.text]
    for problem in left[1:]:
        text = _in_passing(problem, document)
        if len("; ".join([*told, text])) > LONGEST:
            break
        told.append(text)
    more = [f"and {len(left) - len(told)} more"] if len(left) > len(told) else []
    return ConfigurationError(
        "; ".join([*told, *more]),
        source=printable_source(document.source),
        line=line_of(document, first.path),
        key=dotted(first.path) or None,
    )


def _in_passing(problem: Problem, document: Document) -> str:
    line = line_of(document, problem.path)
    place = [] if line is None else [f"line {line}"]
    return ": ".join([*place, *filter(None, [dotted(problem.path)]), problem.text])


def line_of(document: Document, path: Path) -> int | None:
    """Return the line of a path: of its key, or of the nearest parent that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in document.lines:
            return document.lines[path[:length]]
    return document.value_lines.get(())


def printable_source(source: str) -> str:
    """Return the name of a source, safe to print on one line."""
    return source if source.isprintable() and len(source) <= 300 else show(source, 200)


def _problem(model: type[BaseModel], data: Any, details: ErrorDetails) -> Problem:
    kind = details["type"]
    context: dict[str, Any] = details.get("ctx") or {}
    location = details["loc"]
    path = _written_path(data, location)
    if kind == PROBLEM:
        key = context.get("key")
        if key:
            path = (*path, *(int(part) if part.isdecimal() else part for part in key.split(".")))
        elif details["input"] is None:
            return Problem(path, _NOTHING)
        return Problem(path, str(context["problem"]))
    if kind == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        return _unknown_key(path, str(location[-1]), known)
    if kind == "missing":
        path = (*path, str(location[-1]))
        hint = _MISSING_HINTS.get(str(location[-1]), f"add '{location[-1]}: …'")
        return Problem(path, f"is missing; {hint}", rank=1)
    private = any(part in _PRIVATE_KEYS for part in path)
    text = _explain(kind, context, details["input"], private)
    return Problem(path, text, is_count=kind == "too_short")


def _unknown_key(path: Path, key: str, known: list[str]) -> Problem:
    meant = nearest(key, known) or nearest(key.replace("-", "_").lower(), known)
    if meant:
        return Problem(path, f"unknown key, did you mean '{meant}'?", instead_of=meant)
    if len(known) <= 16:
        return Problem(path, f"unknown key; here are known: {', '.join(known)}")
    return Problem(path, "unknown key; 'prefect-dstack schema' lists all that are known")


def _written_path(written: Any, location: tuple[int | str, ...]) -> Path:
    """Follow a pydantic location through the data, leaving out the labels that pydantic adds."""
    path: Path = ()
    at: dict[str | int, Any] = _children(written)
    for part in location:
        if part in at:
            path = (*path, part)
            at = _children(at[part])
    return path


def _children(data: Any) -> dict[str | int, Any]:
    if isinstance(data, (list, tuple)):
        return dict(enumerate(data))
    return dict(data) if isinstance(data, Mapping) else {}


def _keys_at(model: Any, location: Iterable[int | str]) -> list[str]:
    models: list[type[BaseModel]] = [model]
    for part in location:
        deeper = [
            found
            for candidate in models
            if isinstance(part, str) and part in candidate.model_fields
            for found in _models_in(candidate.model_fields[part].annotation)
        ]
        models = deeper or models
    return sorted({key for candidate in models for key in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is not None:
        return [found for argument in get_args(annotation) for found in _models_in(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _must_be(what: str) -> Callable[[dict[str, Any], str], str]:
    return lambda _, shown: f"must be {what}{shown}"


def _bound(words: str, key: str) -> Callable[[dict[str, Any], str], str]:
    return lambda context, shown: f"must be {words} {context[key]:.10g}{shown}"


def _length(words: str, key: str, unit: str) -> Callable[[dict[str, Any], str], str]:
    return lambda context, _: (
        f"must have {words} {context[key]} {unit}" if context[key] > 1 else "must not be empty"
    )


_WHOLE = _must_be("a whole number")
_NUMBER = _must_be("a number")
_TRUTH = _must_be("true or false")
_MAPPING = _must_be("a mapping of 'key: value' lines")
_LIST = _must_be("a list of '- item' lines")
_EXPLANATIONS: dict[str, Callable[[dict[str, Any], str], str]] = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": _NUMBER,
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "string_type": _must_be("text"),
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "greater_than": _bound("more than", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("less than", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "too_short": _length("at least", "min_length", "items"),
    "too_long": _length("at most", "max_length", "items"),
    "string_too_short": _length("at least", "min_length", "characters"),
    "string_too_long": _length("at most", "max_length", "characters"),
}


def _explain(kind: str, context: dict[str, Any], value: Any, private: bool) -> str:
    if value is None:
        return _NOTHING
    hidden = private and not isinstance(value, (list, tuple, dict))
    shown = "" if hidden else f", not {show(value)}"
    if kind == "string_type" and isinstance(value, (int, float)):
        return f"must be text; put quotes around {show(value)}"
    if kind in ("literal_error", "enum"):
        expected = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        meant = nearest(value, expected) if isinstance(value, str) else None
        return f"must be {one_of(expected)}{shown}" + (f"; did you mean '{meant}'?" if meant else "")
    explanation = _EXPLANATIONS.get(kind)
    return explanation(context, shown) if explanation else f"is not valid{shown}"
