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
    schema = adapter.json_schema(mode="validation")
    schema["oneOf"] = [{"$ref": schema["discriminator"]["mapping"][kind]} for kind in MODELS]
    for definition in schema["$defs"].values():
        for name, child in definition.get("properties", {}).items():
            if name != "type" or "const" not in child:
                definition["properties"][name] = _with_interpolation(child)
    for model in MODELS.values():
        schema["$defs"][model.__name__]["required"] = ["type", *_required(schema["$defs"][model.__name__])]
    return {
        "$schema": DIALECT,
        "title": "prefect-dstack configuration",
        "description": "A service, task, development environment, gateway, fleet or volume.",
        **schema,
    }


def _required(definition: dict[str, Any]) -> list[str]:
    return [key for key in definition.get("required", []) if key != "type"]


def _with_interpolation(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _INTERPOLATED]}
    if schema.get("type") in ("integer", "number", "boolean") or "enum" in schema:
        outside = {key: value for key, value in schema.items() if key in ("description", "default", "title")}
        inside = {key: value for key, value in schema.items() if key not in outside}
        return {**outside, "anyOf": [inside, _INTERPOLATED]}
    return schema
