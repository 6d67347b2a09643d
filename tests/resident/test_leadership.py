"""One controller leads, and another one takes over when it is gone."""

from __future__ import annotations

import pytest

from prefect_dstack.blocks import DstackController
from prefect_dstack.resident.leadership import BEAT, Leadership
from prefect_dstack.store import documents
from prefect_dstack.store.controllers import SILENCE, known_controllers
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


class Clock:
    """A clock that only goes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(prefect_server: PrefectServer) -> Clock:
    for name in documents.names(DstackController):
        documents.delete(DstackController, name)
    return Clock()


def test_only_one_leads(clock: Clock) -> None:
    first, second = Leadership("a", "one", clock), Leadership("b", "two", clock)
    assert first.lead()
    assert not second.lead()
    clock.now += BEAT + 1
    assert first.lead()
    assert not second.lead()
    assert [leader["where"] for leader in known_controllers(clock)] == ["one"]


def test_another_one_takes_over_within_15_seconds(clock: Clock) -> None:
    first, second = Leadership("a", "one", clock), Leadership("b", "two", clock)
    assert first.lead()
    waited = 0.0
    while not second.lead():
        clock.now += 1
        waited += 1
    assert SILENCE <= waited <= 15
    assert not first.lead()


def test_one_that_resigns_is_followed_at_once(clock: Clock) -> None:
    first, second = Leadership("a", "one", clock), Leadership("b", "two", clock)
    assert first.lead()
    first.resign()
    assert second.lead()


def test_one_whose_clock_was_ahead_is_followed_too(clock: Clock) -> None:
    stopwatch = Clock()
    second = Leadership("b", "two", clock, stopwatch)
    assert Leadership("a", "one", lambda: clock.now + 3600).lead()
    assert not second.lead()
    stopwatch.now += SILENCE
    assert second.lead()
