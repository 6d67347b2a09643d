"""The JSON Schema of `*.dstack.yml`, for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, TypeAdapter

from prefect_dstack.configurations.base import Model
from prefect_dstack.configurations.loading import MODELS, Configuration

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_INTERPOLATED = {"type": "string", "pattern": r"\$\{\{"}


def configuration_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file.

    It accepts the spellings that the loader does, such as `4..` for a range, and `${{ … }}` wherever a
    number or a truth value stands.
    """
    adapter: TypeAdapter[Configuration] = TypeAdapter(Annotated[Configuration, Discriminator("type")])
    definitions = adapter.json_schema(mode="validation")["$defs"]
    for definition in definitions.values():
        _tidy(definition)
        for name, child in definition.get("properties", {}).items():
            if name != "type" or "const" not in child:
                definition["properties"][name] = _with_interpolation(child)
    for model in _models_below(Model):
        mapping = definitions.get(model.__name__)
        if mapping is not None and model.shorthand:
            filled_in = [] if "string" in model.shorthand else [_INTERPOLATED]
            definitions[model.__name__] = {"anyOf": [{"type": list(model.shorthand)}, *filled_in, mapping]}
    # `if`/`then` instead of `oneOf`: editors then name the wrong key, not six whole alternatives.
    branches = [
        {
            "if": {"properties": {"type": {"const": kind}}},
            "then": {"$ref": f"#/$defs/{model.__name__}"},
        }
        for kind, model in MODELS.items()
    ]
    return {
        "$schema": DIALECT,
        "title": "prefect-dstack configuration",
        "description": "A service, task, development environment, gateway, fleet or volume.",
        "type": "object",
        "properties": {"type": {"enum": list(MODELS), "description": "The type of the configuration."}},
        "required": ["type"],
        "allOf": branches,
        "$defs": definitions,
    }


def _models_below(model: type[Model]) -> Iterator[type[Model]]:
    yield model
    for child in model.__subclasses__():
        yield from _models_below(child)


def _tidy(schema: Any) -> None:
    """Rename pydantic's bounds to those of JSON Schema, and accept the shorthands of all branches."""
    if isinstance(schema, dict):
        for name, keyword in _BOUNDS.items():
            bound = schema.pop(name, None)
            if bound is not None and schema.get("type") in ("integer", "number"):
                schema[keyword] = bound
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
            schema.pop("discriminator", None)
        schema = list(schema.values())
    for child in schema if isinstance(schema, list) else ():
        _tidy(child)


def _with_interpolation(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _INTERPOLATED]}
    if schema.get("type") in ("integer", "number", "boolean") or "enum" in schema:
        outside = {key: value for key, value in schema.items() if key in ("description", "default", "title")}
        inside = {key: value for key, value in schema.items() if key not in outside}
        return {**outside, "anyOf": [inside, _INTERPOLATED]}
    return schema
