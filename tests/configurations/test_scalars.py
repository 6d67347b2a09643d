"""Durations, sizes, percentages, amounts and ranges."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from prefect_dstack.configurations.scalars import (
    CountRange,
    SizeRange,
    amount_of,
    format_duration,
    format_memory,
    format_percent,
    parse_amount,
    parse_bytes,
    parse_duration,
    parse_memory,
    parse_offable_duration,
    parse_percent,
)

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text("0123456789smhdw.%GMBK ", max_size=12)
)
PARSERS = [parse_duration, parse_offable_duration, parse_memory, parse_bytes, parse_percent, parse_amount]


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("1h 30m", 5400), (300, 300), ("300", 300), ("2d", 172_800),
     ("1w", 604_800), ("10 s", 10), ("0s", 0), (0, 0), (90.0, 90), (" 5m ", 300)],
)  # fmt: skip
def test_durations(typed: Any, seconds: int) -> None:
    assert parse_duration(typed) == seconds


@pytest.mark.parametrize(
    "typed", ["", "soon", "5x", "-5m", "1.5h", "m", True, None, 1.5, -1, "9" * 40 + "w", "5m5"]
)
def test_what_is_no_duration(typed: Any) -> None:
    with pytest.raises(PydanticCustomError, match="must be a duration"):
        parse_duration(typed)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("off", "off"), ("OFF", "off"), (False, "off"), (-1, "off"), ("-1", "off"), (True, None), (None, None),
     ("1h", 3600), ("no", "off"), (0, 0)],
)  # fmt: skip
def test_durations_that_may_be_off(typed: Any, value: Any) -> None:
    assert parse_offable_duration(typed) == value
    assert parse_offable_duration(value) == value


@given(st.integers(0, 10 * 365 * 86_400))
def test_durations_come_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("typed", "gigabytes"),
    [("16GB", 16), ("512MB", 0.5), ("1.5TB", 1536), (8, 8), (0.5, 0.5), ("8", 8), ("16 gb", 16),
     ("16GiB", 16), ("1KB", 2**-20), ("0.1GB", 0.1)],
)  # fmt: skip
def test_memory(typed: Any, gigabytes: float) -> None:
    assert parse_memory(typed) == gigabytes


@given(st.floats(0, 2**30, allow_subnormal=False) | st.integers(0, 2**20).map(lambda mb: mb / 1024))
def test_memory_comes_back(gigabytes: float) -> None:
    assert parse_memory(format_memory(gigabytes)) == gigabytes


@pytest.mark.parametrize(
    "typed", ["", "lots", "-1GB", "1PB", True, None, [], float("inf"), float("nan"), 1e300]
)
def test_what_is_no_memory(typed: Any) -> None:
    with pytest.raises(PydanticCustomError, match="must be a size"):
        parse_memory(typed)


def test_bytes_need_their_unit() -> None:
    assert parse_bytes("64MB") == 64 * 2**20
    assert parse_bytes("64m") == 64 * 2**20
    assert parse_bytes(64 * 2**20) == 64 * 2**20
    with pytest.raises(PydanticCustomError, match="with its unit"):
        parse_bytes(64)


@given(st.floats(0, 100, allow_subnormal=False).map(lambda percent: round(percent, 6)))
def test_percentages_come_back(percent: float) -> None:
    assert parse_percent(format_percent(percent)) == percent


@pytest.mark.parametrize("parse", PARSERS)
@given(value=ANYTHING)
def test_parsers_refuse_or_accept_and_never_fail(parse: Callable[[Any], Any], value: Any) -> None:
    with contextlib.suppress(PydanticCustomError):
        parsed = parse(value)
        assert parsed is None or isinstance(parsed, (int, float, str))
        assert parse(parsed) == parsed or parse in (parse_percent, parse_bytes)


@given(st.integers(0, 100), st.integers(0, 1000))
def test_amounts_round_as_asked(percent: int, total: int) -> None:
    up = amount_of(parse_amount(f"{percent}%"), total, round_up=True)
    down = amount_of(parse_amount(f"{percent}%"), total, round_up=False)
    assert down <= percent * total / 100 <= up <= down + 1
    assert amount_of(parse_amount(percent), total, round_up=True) == percent


@pytest.mark.parametrize(
    ("typed", "low", "high"),
    [("4..", 4, None), ("..8", None, 8), ("2..4", 2, 4), (4, 4, 4), ("4", 4, 4), ({"min": 1, "max": 2}, 1, 2),
     ({"max": 2}, None, 2), (" 2 .. 4 ", 2, 4)],
)  # fmt: skip
def test_ranges(typed: Any, low: int | None, high: int | None) -> None:
    parsed = CountRange.model_validate(typed)
    assert (parsed.min, parsed.max) == (low, high)


BOUNDS = st.none() | st.integers(0, 1_000_000)


@given(BOUNDS, BOUNDS)
def test_ranges_come_back(low: int | None, high: int | None) -> None:
    text = f"{'' if low is None else low}..{'' if high is None else high}"
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        with pytest.raises(ValueError, match="must"):
            CountRange.model_validate(text)
        return
    parsed = CountRange.model_validate(text)
    assert CountRange.model_validate(parsed.model_dump(mode="json")) == parsed
    assert str(parsed) == (text if low != high else str(low))
    assert parsed.fixed == (low == high)
    assert all(parsed.holds(end) for end in (low, high) if end is not None)
    assert low is None or not parsed.holds(low - 1)
    assert high is None or not parsed.holds(high + 1)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_ranges_of_sizes_come_back(a: float, b: float) -> None:
    parsed = SizeRange(min=min(a, b), max=max(a, b))
    assert SizeRange.model_validate(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize(
    "typed", ["..", "", "4..2", "1..2..3", True, None, [], {}, "-1..", "a..b", {"min": True}]
)
def test_what_is_no_range(typed: Any) -> None:
    with pytest.raises(ValueError, match=r"must|valid"):
        CountRange.model_validate(typed)
