"""What a replica needs of a machine."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.messages import nearest, show
from prefect_dstack.configurations.names import Identifier
from prefect_dstack.configurations.scalars import CountRange, Gigabytes, SizeRange

_ARCHITECTURES = {
    "x86": "x86",
    "amd64": "x86",
    "x86_64": "x86",
    "arm": "arm",
    "arm64": "arm",
    "aarch64": "arm",
}
_VENDORS = {
    "nvidia": "nvidia",
    "amd": "amd",
    "google": "google",
    "tpu": "google",
    "intel": "intel",
    "tenstorrent": "tenstorrent",
    "tt": "tenstorrent",
}
_CAPABILITY = re.compile(r"\s*(\d{1,2})\.(\d{1,2})\s*")


def _tokens(value: str, what: str) -> list[str]:
    tokens = value.replace(" ", "").split(":")
    if not all(tokens):
        refuse(f"must be {what}, not {show(value)}")
    return tokens


def _put(parsed: dict[str, Any], key: str, token: Any, value: str) -> None:
    if key in parsed:
        refuse(f"gives its {key} twice: {show(value)}")
    parsed[key] = token


class Cpu(Model):
    """Processor cores, written as `4`, `4..`, `x86:4..` or a mapping."""

    shorthand = ("integer", "string")

    arch: Literal["x86", "arm"] | None = Field(
        default=None, description="The processor architecture, x86 or arm."
    )
    count: CountRange | None = Field(default=None, description="The number of cores or a range of it.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"count": value}
        if isinstance(value, str):
            parsed: dict[str, Any] = {}
            for token in _tokens(value, "a number of cores such as 4, 4.. or x86:4.."):
                if token[0].isdigit() or token.startswith(".."):
                    _put(parsed, "count", token, value)
                else:
                    _put(parsed, "arch", token, value)
            value = parsed
        if isinstance(value, dict):
            if value.keys() <= {"min", "max"} and value:
                return {"count": value}
            arch = value.get("arch")
            if isinstance(arch, str):
                if arch.lower() not in _ARCHITECTURES:
                    refuse(f"must be x86 or arm, not {show(arch)}")
                return {**value, "arch": _ARCHITECTURES[arch.lower()]}
        elif not isinstance(value, Cpu):
            refuse(f"must be a number of cores such as 4, 4.. or x86:4.., not {show(value)}")
        return value


def _parse_capability(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = f"{value[0]}.{value[1]}"
    text = getattr(value, "text", None) or (str(value) if isinstance(value, (int, float)) else value)
    if isinstance(text, str) and text.strip().isdecimal():
        text = f"{text.strip()}.0"
    match = _CAPABILITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        refuse(f"must be a compute capability such as 7.5, not {show(value)}")
    return int(match[1]), int(match[2])


ComputeCapability = Annotated[
    tuple[int, int], BeforeValidator(_parse_capability, json_schema_input_type=float | str | list[int])
]


class Gpu(Model):
    """Accelerators, written as `2`, `24GB`, `A100:2`, `nvidia:A100:80GB:2`, a list of names or a mapping."""

    shorthand = ("integer", "string", "array")

    vendor: Literal["nvidia", "amd", "google", "intel", "tenstorrent"] | None = Field(
        default=None,
        description="The vendor of the accelerator: nvidia, amd, google (or tpu), intel or tenstorrent.",
    )
    name: tuple[Identifier, ...] | None = Field(
        default=None, description="The model of the accelerator such as A100, or a list of acceptable models."
    )
    count: CountRange | None = Field(
        default=None, description="The number of accelerators; one if it is not given."
    )
    memory: SizeRange | None = Field(
        default=None, description="The memory of one accelerator, such as 24GB or 16GB..."
    )
    total_memory: SizeRange | None = Field(
        default=None, description="The memory of all accelerators together."
    )
    compute_capability: ComputeCapability | None = Field(
        default=None, description="The least CUDA compute capability, such as 7.5."
    )

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"count": value}
        if isinstance(value, str):
            value = cls._parse_text(value)
        elif isinstance(value, (list, tuple)):
            value = {"name": value}
        elif not isinstance(value, (dict, Gpu)):
            refuse(f"must be GPUs such as 2, 24GB or A100:2, not {show(value)}")
        if isinstance(value, dict):
            return cls._normalise(value)
        return value

    @classmethod
    def _parse_text(cls, value: str) -> dict[str, Any]:
        parsed: dict[str, Any] = {}
        for token in _tokens(value, "GPUs such as 2, 24GB or nvidia:A100:80GB:2"):
            if token.lower() in _VENDORS:
                _put(parsed, "vendor", token, value)
            elif token[0].isalpha():
                _put(parsed, "name", token, value)
            elif any(character.isalpha() for character in token):
                _put(parsed, "memory", token, value)
            else:
                _put(parsed, "count", token, value)
        return parsed

    @classmethod
    def _normalise(cls, value: dict[str, Any]) -> dict[str, Any]:
        normal = dict(value)
        vendor, name = normal.get("vendor"), normal.get("name")
        if isinstance(vendor, str):
            if vendor.lower() not in _VENDORS:
                meant = nearest(vendor.lower(), _VENDORS)
                refuse(
                    f"must be nvidia, amd, google, intel or tenstorrent, not {show(vendor)}"
                    + (f"; did you mean {meant}?" if meant else "")
                )
            normal["vendor"] = _VENDORS[vendor.lower()]
        if isinstance(name, str):
            normal["name"] = name.split(",")
        return normal


class Disk(Model):
    """Disk space, written as `100GB`, `100GB..` or a mapping."""

    shorthand = ("integer", "number", "string")

    size: SizeRange = Field(description="The size of the disk or a range of it.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.keys() <= {"min", "max"} and value:
            return {"size": value}
        return value if isinstance(value, (dict, Disk)) else {"size": value}


class Resources(Model):
    """What a replica needs; what is not given may be anything."""

    cpu: Cpu | None = Field(default=None, description="The processor cores, such as 4.. or x86:4.")
    memory: SizeRange | None = Field(default=None, description="The main memory, such as 16GB or 16GB...")
    shm_size: Gigabytes | None = Field(default=None, description="The size of shared memory, such as 8GB.")
    gpu: Gpu | None = Field(default=None, description="The accelerators, such as 24GB, A100:2 or a mapping.")
    disk: Disk | None = Field(default=None, description="The disk space, such as 100GB...")
