"""Renew `data/dstack-schema.json` from the dstack that is installed next to the given Python.

dstack is no dependency of ours, so it has an environment of its own:

    python3 -m venv /tmp/dstack && /tmp/dstack/bin/pip install dstack
    python tests/configurations/renew_schema.py /tmp/dstack/bin/python
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "data" / "dstack-schema.json"
KINDS = ("service", "task", "dev-environment", "fleet", "gateway", "volume", "preset")
EXPORT = """
import importlib.metadata, json
from dstack._internal.core.models.configurations import DstackConfiguration
schema = DstackConfiguration.model_json_schema()
print(json.dumps({"version": importlib.metadata.version("dstack"), "schema": schema}))
"""
# What a key is, not what it says.
KEPT = {
    "$ref",
    "anyOf",
    "oneOf",
    "allOf",
    "items",
    "enum",
    "const",
    "type",
    "additionalProperties",
    "required",
}


def bare(schema: Any) -> Any:
    """Leave out all that is said for readers: titles, descriptions, defaults, bounds."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: bare(value) for key, value in schema.items() if key in KEPT}
    if isinstance(schema.get("properties"), dict):
        kept["properties"] = {name: bare(child) for name, child in schema["properties"].items()}
    return kept


def renewed(python: str) -> dict[str, Any]:
    """Ask the dstack of an environment for its keys."""
    result = subprocess.run([python, "-c", EXPORT], check=True, capture_output=True, text=True)
    exported = json.loads(result.stdout)
    schema = exported["schema"]
    kinds = {kind: schema["discriminator"]["mapping"][kind] for kind in KINDS}
    definitions = {name: bare(one) for name, one in schema["$defs"].items()}
    return {"dstack": exported["version"], "kinds": kinds, "$defs": definitions}


if __name__ == "__main__":
    SCHEMA.parent.mkdir(exist_ok=True)
    SCHEMA.write_text(json.dumps(renewed(sys.argv[1]), indent=1, sort_keys=True) + "\n")
    print(f"{SCHEMA}: {json.loads(SCHEMA.read_text())['dstack']}")
