"""Cron expressions of files mean the same days to Prefect as to dstack."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations.profile import parse_cron
from prefect_dstack.domain.schedules import DAYS, weekdays_named

days = st.sampled_from(range(7))
names = st.sampled_from([*DAYS, *map(str, range(7))])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0 8 * * 0-4", "0 8 * * mon,tue,wed,thu,fri"),
        ("0 8 * * mon-fri", "0 8 * * mon,tue,wed,thu,fri"),
        ("*/5 0-6 1,15 jan-mar 6", "*/5 0-6 1,15 jan-mar sun"),
        ("0 0 * * */3", "0 0 * * mon,thu,sun"),
        ("0 0 * * fri/2,tue", "0 0 * * tue,fri,sun"),
        ("0 0 * * *", "0 0 * * *"),
        ("0 0 * * mon-sun", "0 0 * * *"),
    ],
)
def test_a_week_begins_on_monday(written: str, meant: str) -> None:
    assert weekdays_named(parse_cron(written)) == meant


@given(st.lists(names, min_size=1))
def test_a_list_of_days_is_those_days(listed: list[str]) -> None:
    wanted = {day if day in DAYS else DAYS[int(day)] for day in listed}

    named = weekdays_named(f"0 0 * * {','.join(listed)}").split()[-1]

    assert (set(DAYS) if named == "*" else set(named.split(","))) == wanted


@given(st.tuples(days, days).map(sorted), st.sampled_from([1, 2, 3]))
def test_what_is_accepted_has_a_meaning(ends: list[int], step: int) -> None:
    first, last = ends

    named = weekdays_named(parse_cron(f"0 0 * * {first}-{last}/{step}")).split()[-1]

    assert named.split(",")[0] in ("*", DAYS[first])
