"""Durations, sizes, percentages and ranges, as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.messages import show

OFF = "off"
_DURATION_PART = re.compile(r"(\d{1,12})\s*([smhdw])")
_DURATION = re.compile(r"\s*(?:\d{1,12}\s*[smhdw]\s*)+")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 10 * 365 * 86_400
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,20})?(?:[eE]-?\d{1,3})?)\s*([kmgt]i?b?|b)?", re.IGNORECASE)
_BYTES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")
_GB = 2**30


class NumberAsTyped:
    """Mixed into numbers that YAML gave, to remember how they were typed (`3.10`, `0x1f`)."""

    text: str


class IntAsTyped(NumberAsTyped, int):
    """An integer with its spelling."""


class FloatAsTyped(NumberAsTyped, float):
    """A number with its spelling."""


def to_text(value: Any) -> Any:
    """Turn a number or a truth value into the text it was typed as; leave all else."""
    if isinstance(value, NumberAsTyped):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    return value


def parse_duration(value: Any) -> int:
    """Read a duration.

    Args:
        value: Seconds, or text such as `90`, `5m`, `1h30m`, `2d`, `1w`.

    Returns:
        Whole seconds.
    """
    seconds: int | None = None
    if isinstance(value, str):
        if value.strip(" ").isdecimal() and len(value) <= 12:
            seconds = int(value)
        elif _DURATION.fullmatch(value):
            seconds = sum(int(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
        seconds = int(value)
    if seconds is None or not 0 <= seconds <= _LONGEST:
        refuse(f"must be a duration such as 30s, 5m or 1h30m, not {show(value)}")
    return seconds


def parse_offable_duration(value: Any) -> int | str | None:
    """Read a duration that may be `off`, false or -1 (no limit), or true (the default)."""
    if value is None or value is True or (isinstance(value, str) and value.lower() in ("true", "on")):
        return None
    if (
        value is False
        or (isinstance(value, str) and value.lower() in (OFF, "false", "no", "-1"))
        or value == -1
    ):
        return OFF
    return parse_duration(value)


def format_duration(seconds: int) -> str:
    """Format seconds in the largest units that lose nothing, such as `1h30m`."""
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, _SECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _parse_size(value: Any, default_unit: str) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63:
        value = repr(float(value)) if isinstance(value, float) else str(int(value))
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    unit = (match[2] or default_unit)[0].lower()
    size = float(match[1]) * _BYTES[unit]
    return size if size <= 2**60 else None


def parse_memory(value: Any) -> float:
    """Read an amount of memory or disk.

    Args:
        value: Gigabytes, or text such as `512MB`, `16GB`, `1.5TB`.

    Returns:
        Gigabytes of 2**30 bytes.
    """
    size = _parse_size(value, "g")
    if size is None:
        refuse(f"must be a size such as 512MB or 16GB, not {show(value)}")
    return size / _GB


def format_memory(gigabytes: float) -> str:
    """Format gigabytes so that `parse_memory` gives them back exactly."""
    if gigabytes == int(gigabytes):
        return f"{int(gigabytes)}GB"
    megabytes = gigabytes * 1024
    return f"{int(megabytes)}MB" if megabytes == int(megabytes) else f"{gigabytes!r}GB"


def parse_bytes(value: Any) -> int:
    """Read a size of data.

    Args:
        value: Bytes, or text such as `512KB`, `64MB`.

    Returns:
        Whole bytes.
    """
    size = _parse_size(value, "b")
    if size is None or size < 1024:
        refuse(f"must be a size with its unit such as 64MB, not {show(value)}")
    return int(size)


def parse_percent(value: Any) -> float:
    """Read a percentage such as `10%`, and return 10.0."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) > 100:
        refuse(f"must be a percentage such as 10%, not {show(value)}")
    return float(match[1])


def format_percent(percent: float) -> str:
    """Format a percentage so that `parse_percent` gives it back exactly."""
    return f"{percent:.6f}".rstrip("0").removesuffix(".") + "%"


def parse_amount(value: Any) -> int | str:
    """Read a number of replicas or a share of them, such as `2` or `25%`."""
    if isinstance(value, str) and "%" in value:
        percent = parse_percent(value)
        if percent == int(percent):
            return f"{int(percent)}%"
    elif (isinstance(value, str) and value.isdecimal() and len(value) <= 6) or (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**6
    ):
        return int(value)
    return refuse(f"must be a whole number or a whole percentage such as 25%, not {show(value)}")


def amount_of(amount: int | str, total: int, *, round_up: bool) -> int:
    """Return how many of `total` an amount is: itself, or its percentage rounded as asked."""
    if isinstance(amount, int):
        return amount
    share = int(amount.removesuffix("%")) * total
    return -(-share // 100) if round_up else share // 100


Duration = Annotated[int, BeforeValidator(parse_duration, json_schema_input_type=int | str)]
OffableDuration = Annotated[
    int | Literal["off"] | None,
    BeforeValidator(parse_offable_duration, json_schema_input_type=int | str | bool | None),
]
Gigabytes = Annotated[
    float,
    BeforeValidator(parse_memory, json_schema_input_type=int | float | str),
    PlainSerializer(format_memory, return_type=str),
]
Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
Percent = Annotated[
    float,
    BeforeValidator(parse_percent, json_schema_input_type=str),
    PlainSerializer(format_percent, return_type=str),
]
Amount = Annotated[int | str, BeforeValidator(parse_amount, json_schema_input_type=int | str)]

Bound = TypeVar("Bound")


class Range(Model, Generic[Bound]):
    """From `min` to `max`, both included; one of them may be open.

    Written as `4`, `4..`, `..8`, `2..4`, or as a mapping of `min` and `max`.
    """

    shorthand = ("integer", "number", "string")

    min: Bound | None = Field(default=None, description="The least value, or nothing for no lower limit.")
    max: Bound | None = Field(default=None, description="The greatest value, or nothing for no upper limit.")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            low, dots, high = (part.strip() for part in value.partition(".."))
            if not dots:
                return {"min": low, "max": low}
            if ".." in high:
                refuse(f"must be a range such as 2..4, 4.. or ..8, not {show(value)}")
            return {"min": low or None, "max": high or None}
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if not isinstance(value, (dict, Range)):
            refuse(f"must be a number or a range such as 2..4, not {show(value)}")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low: Any = self.min
        high: Any = self.max
        if low is None and high is None:
            refuse("must be a range such as 2..4, 4.. or ..8, with at least one end")
        if low is not None and high is not None and low > high:
            refuse(f"must not end before it begins: {self}")
        return self

    @property
    def fixed(self) -> bool:
        """Whether only one value is allowed."""
        return self.min is not None and self.min == self.max

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        low: Any = self.min
        high: Any = self.max
        return (low is None or low <= value) and (high is None or value <= high)

    def __str__(self) -> str:
        return str(self.model_dump())

    @model_serializer(mode="wrap")
    def _joined(self, handler: SerializerFunctionWrapHandler) -> int | float | str:
        ends = handler(self)
        low, high = ends.get("min"), ends.get("max")
        if self.fixed:
            fixed: int | float | str = low
            return fixed
        return f"{'' if low is None else low}..{'' if high is None else high}"


def _not_truth(value: Any) -> Any:
    if isinstance(value, bool):
        refuse(f"must be a number, not {show(value)}")
    return value


Whole = Annotated[int, BeforeValidator(_not_truth, json_schema_input_type=int)]
Number = Annotated[float, BeforeValidator(_not_truth, json_schema_input_type=float)]
Count = Annotated[Whole, Field(ge=0, le=1_000_000)]
Positive = Annotated[Whole, Field(ge=1, le=1_000_000)]


class CountRange(Range[Count]):
    """A range of whole numbers."""


class SizeRange(Range[Gigabytes]):
    """A range of sizes; `min` and `max` are gigabytes of 2**30 bytes."""
