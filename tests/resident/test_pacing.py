"""How often the controller looks."""

from __future__ import annotations

import pytest

from prefect_dstack.resident.pacing import MOST, SHARE, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def is_due(pace: Pace) -> bool:
    return pace.due


def taking(clock: Clock, seconds: float) -> None:
    clock.now += seconds


def test_what_is_quick_is_due_after_its_interval(clock: Clock) -> None:
    pace = Pace(5, clock, cost=clock)
    assert is_due(pace)
    pace.keep(lambda: taking(clock, 0.1))
    clock.now = 4.9
    assert not is_due(pace)
    clock.now = 5
    assert is_due(pace)


def test_what_takes_long_takes_no_more_than_its_share(clock: Clock) -> None:
    pace = Pace(5, clock, cost=clock)
    pace.keep(lambda: taking(clock, 0.4))
    clock.now = 0.4 / SHARE - 0.1
    assert not is_due(pace)
    clock.now = 0.4 / SHARE
    assert is_due(pace)


def test_it_is_not_put_off_for_ever(clock: Clock) -> None:
    pace = Pace(5, clock, cost=clock)
    pace.keep(lambda: taking(clock, 1))
    clock.now = 5 * MOST
    assert is_due(pace)


def test_waiting_is_no_work(clock: Clock) -> None:
    pace = Pace(5, clock, cost=lambda: 0.0)
    pace.keep(lambda: taking(clock, 60))
    assert is_due(pace)


def test_what_fails_is_not_tried_again_at_once(clock: Clock) -> None:
    pace = Pace(5, clock, cost=clock)
    with pytest.raises(ZeroDivisionError):
        pace.keep(lambda: 1 / 0)
    assert not is_due(pace)


def test_it_can_be_hurried(clock: Clock) -> None:
    pace = Pace(5, clock, cost=clock)
    pace.keep(lambda: None)
    pace.hurry()
    assert is_due(pace)


def test_it_can_be_hurried_while_it_is_done(clock: Clock) -> None:
    pace = Pace(5, clock, cost=clock)
    pace.keep(pace.hurry)
    assert is_due(pace)
