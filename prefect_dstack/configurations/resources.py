"""What a replica needs of a machine."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.messages import nearest, one_of, show
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


def _alias(value: Any, aliases: dict[str, str]) -> Any:
    if not isinstance(value, str) or value.lower() in aliases:
        return aliases[value.lower()] if isinstance(value, str) else value
    meant = nearest(value.lower(), aliases)
    hint = f"; did you mean {meant}?" if meant else ""
    return refuse(f"must be {one_of(dict.fromkeys(aliases.values()))}, not {show(value)}{hint}")


Architecture = Annotated[
    Literal["x86", "arm"],
    BeforeValidator(lambda value: _alias(value, _ARCHITECTURES), json_schema_input_type=str),
]
Vendor = Annotated[
    Literal["nvidia", "amd", "google", "intel", "tenstorrent"],
    BeforeValidator(lambda value: _alias(value, _VENDORS), json_schema_input_type=str),
]
GpuNames = Annotated[
    tuple[Identifier, ...],
    BeforeValidator(
        lambda value: value.split(",") if isinstance(value, str) else value,
        json_schema_input_type=str | list[str],
    ),
]


class Cpu(Model):
    """Processor cores, written as `4`, `4..`, `x86:4..` or a mapping."""

    shorthand = ("integer", "string")

    arch: Architecture | None = Field(default=None, description="The processor architecture, x86 or arm.")
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
        if isinstance(value, dict) and value and value.keys() <= {"min", "max"}:
            return {"count": value}
        if not isinstance(value, (dict, Cpu)):
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

    vendor: Vendor | None = Field(
        default=None,
        description="The vendor of the accelerator: nvidia, amd, google (or tpu), intel or tenstorrent.",
    )
    name: GpuNames | None = Field(
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
