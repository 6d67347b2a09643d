"""What is remembered of a service's load: the last day, in few points."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.load_history import INTERVAL, LoadHistory

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LOOKS = st.lists(
    st.tuples(st.integers(0, 3600), st.floats(0, 1e6), st.integers(0, 1000)), min_size=1, max_size=300
)


def recorded(looks: list[tuple[int, float, int]]) -> tuple[LoadHistory, list[tuple[datetime, float, int]]]:
    history, at, seen = LoadHistory(), NOON, []
    for seconds, rate, replicas in looks:
        at += timedelta(seconds=seconds)
        history.add(at, rate, replicas)
        seen.append((at, rate, replicas))
    return history, seen


@given(LOOKS)
def test_each_point_sums_up_its_interval(looks: list[tuple[int, float, int]]) -> None:
    history, seen = recorded(looks)
    points = history.since(seen[-1][0] - timedelta(days=1))
    assert len(points) <= timedelta(days=1) / INTERVAL
    assert [point.start for point in points] == sorted({point.start for point in points})
    for point in points:
        inside = [look for look in seen if point.start <= look[0] < point.start + INTERVAL]
        assert point.looks == len(inside)
        assert point.rate == pytest.approx(sum(rate for _, rate, _ in inside) / len(inside))
        assert point.replicas == max(replicas for _, _, replicas in inside)
        assert point.start.timestamp() % INTERVAL.total_seconds() == 0


@given(LOOKS, st.integers(0, 100))
def test_what_is_older_is_left_out(looks: list[tuple[int, float, int]], hours: int) -> None:
    history, _ = recorded(looks)
    moment = NOON + timedelta(hours=hours)
    assert all(point.start >= moment for point in history.since(moment))
