"""The tags by which everything of ours in an account is found again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from prefect_dstack.domain.stamp import PREFIX

__all__ = ["Role", "filters", "from_list", "specifications", "to_list"]

Role = Literal["replica", "peer", "gateway"]

ROLE = f"{PREFIX}:role"
GATEWAY = f"{PREFIX}:gateway"
HOST_KEY = f"{PREFIX}:host-key"
PORTS = f"{PREFIX}:ports"
DOMAIN = f"{PREFIX}:domain"
PRICE = f"{PREFIX}:price"
GPUS = f"{PREFIX}:gpus"


def to_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def from_list(tags: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    """Read tags as EC2 gives them."""
    return {tag["Key"]: tag["Value"] for tag in tags or ()}


def specifications(tags: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    """Return tags for the call that creates resources of these kinds."""
    return [{"ResourceType": kind, "Tags": to_list(tags)} for kind in kinds]


def filters(**values: str | Iterable[str]) -> list[dict[str, Any]]:
    """Return filters of EC2's describe calls; `_` stands for `-`, and `tag` holds a mapping's items apart."""
    return [
        {"Name": name.replace("_", "-"), "Values": [value] if isinstance(value, str) else list(value)}
        for name, value in values.items()
    ]


def tagged(key: str, *values: str) -> dict[str, Any]:
    """Return a filter for a tag; without values, for its presence."""
    if not values:
        return {"Name": "tag-key", "Values": [key]}
    return {"Name": f"tag:{key}", "Values": list(values)}
