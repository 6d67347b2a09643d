"""The JSON Schema of `*.dstack.yml`, for editors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, TypeAdapter

from prefect_dstack.configurations.loading import MODELS, Configuration

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_INTERPOLATED = {"type": "string", "pattern": r"\$\{\{"}


def configuration_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file.

    It accepts the spellings that the loader does, such as `4..` for a range, and `${{ … }}` wherever a
    number or a truth value stands.
    """
    adapter: TypeAdapter[Configuration] = TypeAdapter(Annotated[Configuration, Discriminator("type")])
    definitions = adapter.json_schema(mode="validation")["$defs"]
    for definition in definitions.values():
        _any_instead_of_one(definition)
        for name, child in definition.get("properties", {}).items():
            if name != "type" or "const" not in child:
                definition["properties"][name] = _with_interpolation(child)
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


def _any_instead_of_one(schema: Any) -> None:
    """Where a text could be a shorthand of several models, let it be that of any."""
    if isinstance(schema, dict):
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
            schema.pop("discriminator", None)
        schema = list(schema.values())
    for child in schema if isinstance(schema, list) else ():
        _any_instead_of_one(child)


def _with_interpolation(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _INTERPOLATED]}
    if schema.get("type") in ("integer", "number", "boolean") or "enum" in schema:
        outside = {key: value for key, value in schema.items() if key in ("description", "default", "title")}
        inside = {key: value for key, value in schema.items() if key not in outside}
        return {**outside, "anyOf": [inside, _INTERPOLATED]}
    return schema
