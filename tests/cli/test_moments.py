"""Times as they are typed."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.cli.moments import parse_moment
from prefect_dstack.errors import UserError


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        (" 1w ", timedelta(weeks=1)),
    ],
)
def test_how_long_ago(text: str, ago: timedelta) -> None:
    assert abs(datetime.now(UTC) - ago - parse_moment(text, "--since")) < timedelta(seconds=5)


def test_when() -> None:
    assert parse_moment("2026-01-02T03:04:05+00:00", "--since") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse_moment("2026-01-02", "--since").tzinfo is UTC


@pytest.mark.parametrize("text", ["", "10", "yesterday", "10 m", "-5m", "m", "999999999w", "2026-13-01"])
def test_what_is_neither_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"such as 10m, 2h or 1d"):
        parse_moment(text, "--since")


@given(st.text(max_size=20) | st.from_regex(r"([0-9]{1,12}[smhdw]){1,4}", fullmatch=True))
def test_whatever_is_typed_is_a_time_or_a_mistake(text: str) -> None:
    with contextlib.suppress(UserError):
        assert parse_moment(text, "--since").tzinfo is not None
