"""Every key of dstack's files, each in a configuration that is as small as it can be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "dstack-schema.json").read_text())
KINDS = ("service", "task", "dev-environment", "fleet", "gateway", "volume")

# What every configuration of a kind has; `image` goes where something else stands in its place.
SMALLEST: dict[str, dict[str, Any]] = {
    "service": {"type": "service", "name": "a", "port": 8000, "commands": ["run"]},
    "task": {"type": "task", "name": "a", "commands": ["run"]},
    "dev-environment": {"type": "dev-environment", "name": "a"},
    "fleet": {"type": "fleet", "name": "a"},
    "gateway": {"type": "gateway", "name": "a", "backend": "aws", "region": "eu-west-1"},
    "volume": {"type": "volume", "name": "a", "backend": "aws", "region": "eu-west-1"},
}
# Texts that have a form of their own, by definition and key, or by key.
TEXTS: dict[str, Any] = {
    "availability_zone": "eu-west-1a",
    "cron": "0 8 * * *",
    "domain": "example.com",
    "duration": "1h",
    "fleet": "gpus",
    "auto_cleanup_duration": "1h",
    "hash": "0123abc",
    "hostname": "10.0.0.1",
    "hosts": "10.0.0.1",
    "idle_duration": "1h",
    "inactivity_duration": "1h",
    "instance_path": "/data",
    "internal_ip": "10.0.0.1",
    "interval": "10s",
    "max_duration": "1h",
    "network": "10.0.0.0/24",
    "path": "/data",
    "prefix": "/v1",
    "python": "3.12",
    "ports": "80:8000",
    "port": "80:8000",
    "scale_down_delay": "5m",
    "scale_up_delay": "5m",
    "shell": "bash",
    "stop_duration": "10s",
    "time_window": "10m",
    "timeout": "10s",
    "url": "/health",
    "user": "1000:1000",
    "version": "1.101.0",
    "volumes": "/data:/data",
    "window": "60s",
    "FilePathMapping.path": "/a",
    "RepoSpec.url": "https://git.example.com/a.git",
    "SSHParams.ssh_key": "${{ secrets.KEY }}",
    "SSHHostParams.ssh_key": "${{ secrets.KEY }}",
    "SSHProxyParams.ssh_key": "${{ secrets.KEY }}",
    "SSHParams.user": "ubuntu",
    "SSHHostParams.user": "ubuntu",
    "SSHProxyParams.user": "ubuntu",
    **dict.fromkeys(("memory", "total_memory", "size", "disk", "shm_size"), "16GB"),
    **dict.fromkeys(("count", "cpu", "nodes", "replicas", "blocks", "min", "max", "target"), "2"),
    **{f"Range_Memory_.{key}": "16GB" for key in ("min", "max")},
    "cpu": "x86:2",
    "gpu": "A100:2",
    "compute_capability": "7.5",
    "backend": "aws",
}
NUMBERS = {"compute_capability": 7.5, "time_window": 600}
SCALING = {"metric": "rps", "target": 1}
# What must stand beside a key, in the same mapping.
BESIDE: dict[str, dict[str, Any]] = {
    "DevEnvironmentConfiguration.version": {"ide": "vscode"},
    "FleetConfiguration.blocks": {"ssh_config": {"hosts": ["10.0.0.1"]}},
    "FleetInstanceSelector.fleet": {"instance": 0},
    "FleetInstanceSelector.instance": {"fleet": "gpus"},
    "FleetNodesSpec.target": {"min": 1, "max": 20},
    "HeaderPartitioningKey.type": {"header": "X-Key"},
    "HeaderPartitioningKey.header": {"type": "header"},
    "ProbeConfig.body": {"method": "post"},
    "RepoSpec.branch": {"local_path": "."},
    "RepoSpec.hash": {"local_path": "."},
    "RepoSpec.path": {"local_path": "."},
    "RepoSpec.if_exists": {"local_path": "."},
    "ReplicaGroup.scaling": {"replicas": "1..2"},
    "ServiceConfiguration.scaling": {"replicas": "1..2"},
}
# What must stand beside a mapping, in the one around it.
AROUND: dict[str, dict[str, Any]] = {
    "LetsEncryptGatewayCertificate": {"domain": "example.com"},
}
# What cannot stand beside a key.
WITHOUT: dict[str, set[str]] = {
    "ServiceConfiguration.groups": {"commands", "replicas"},
    "TaskConfiguration.groups": {"commands"},
}
# Mappings that stand for something only with one of their keys.
ALWAYS: dict[str, dict[str, Any]] = {
    "NodeGroup": {"commands": ["run"]},
    "ReplicaGroup": {"commands": ["run"], "replicas": 1},
    "SSHHostParams": {"hostname": "10.0.0.1"},
    "SSHProxyParams": {"hostname": "10.0.0.2"},
    "SSHParams": {"hosts": ["10.0.0.1"]},
    "VastAIProfileOptions": {"type": "vastai"},
    "ACMGatewayCertificate": {"type": "acm"},
    "GCPCertificateManagerGatewayCertificate": {"type": "gcp-cm"},
}


@dataclass(frozen=True)
class Use:
    """One way to use one key.

    Attributes:
        kind: The kind of configuration.
        path: Where the key is, with the number of the item in lists.
        key: The definition that has the key, and the key.
        configuration: A configuration that uses it.
    """

    kind: str
    path: tuple[str | int, ...]
    key: str
    configuration: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind}:{'.'.join(map(str, self.path))}"


def uses(kind: str) -> Iterator[Use]:
    """Yield every use of every key of a kind: of each enumerated value, and of each way to write it."""
    for name in definitions_of(SCHEMA["kinds"][kind]):
        smallest = dict(SMALLEST[kind])
        yield from _of_mapping(kind, name, (), smallest, lambda inner: inner, frozenset())


def definitions_of(reference: str) -> list[str]:
    """Return the definitions that a reference stands for."""
    name = reference.rpartition("/")[2]
    definition = SCHEMA["$defs"][name]
    if "properties" in definition:
        return [name]
    return [one["$ref"].rpartition("/")[2] for one in definition.get("oneOf", ()) if "$ref" in one]


def _of_mapping(
    kind: str,
    name: str,
    path: tuple[str | int, ...],
    smallest: dict[str, Any],
    wrap: Callable[[Any], Any],
    above: frozenset[str],
) -> Iterator[Use]:
    definition = SCHEMA["$defs"][name]
    for key, schema in definition["properties"].items():
        if path == () and key == "type":
            continue
        place = f"{name}.{key}"
        base = {**_required(name, key), **smallest, **BESIDE.get(place, {})}
        for other in WITHOUT.get(place, ()):
            base.pop(other, None)

        def put(value: Any, base: dict[str, Any] = base, key: str = key) -> Any:
            return wrap({**base, key: value})

        for value in _values(schema, place):
            yield Use(kind, (*path, key), place, put(value))
        for inner, in_list in _mappings(schema):
            if inner in above:
                continue
            item = {**ALWAYS.get(inner, {})}
            at = (*path, key, 0) if in_list else (*path, key)

            beside = {**base, **AROUND.get(inner, {})}

            def deeper(
                value: Any,
                put: Callable[..., Any] = put,
                in_list: bool = in_list,
                beside: dict[str, Any] = beside,
            ) -> Any:
                return put([value] if in_list else value, beside)

            yield from _of_mapping(kind, inner, at, item, deeper, above | {name})


def _required(name: str, key: str) -> dict[str, Any]:
    definition = SCHEMA["$defs"][name]
    needed = {
        one: next(iter(_values(definition["properties"][one], f"{name}.{one}")), None)
        for one in definition.get("required", ())
        if one != key
    }
    return {one: value for one, value in needed.items() if value is not None}


def _values(schema: dict[str, Any], place: str) -> Iterator[Any]:
    """Yield the values that are not mappings."""
    if "$ref" in schema:
        target = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        if "properties" not in target:
            yield from _values(target, place)
    elif "const" in schema or "enum" in schema:
        yield from schema.get("enum", [schema.get("const")])
    elif alternatives := schema.get("anyOf") or schema.get("oneOf"):
        for one in alternatives:
            yield from _values(one, place)
    else:
        yield from _values_of_type(schema, place)


def _values_of_type(schema: dict[str, Any], place: str) -> Iterator[Any]:
    name = place.rpartition(".")[2]
    kind = schema.get("type")
    if kind == "array":
        items = _values(schema.get("items", {"type": "string"}), place)
        yield from ([7, 5] if name == "compute_capability" else [item] for item in items)
    elif kind == "object":
        if isinstance(value := schema.get("additionalProperties"), dict):
            yield {"NAME": next(iter(_values(value, place)))}
    elif kind == "boolean":
        yield True
    elif kind in ("integer", "number"):
        yield NUMBERS.get(name, 10)
    elif kind == "string":
        yield TEXTS.get(place, TEXTS.get(name, "text"))


def _mappings(schema: dict[str, Any], in_list: bool = False) -> Iterator[tuple[str, bool]]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = SCHEMA["$defs"][name]
        if "properties" in target:
            yield name, in_list
        else:
            yield from _mappings(target, in_list)
    for one in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        yield from _mappings(one, in_list)
    if schema.get("type") == "array":
        yield from _mappings(schema.get("items", {}), True)
