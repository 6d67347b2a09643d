"""Of runs that wait for a machine, those of higher priority try first, and hold up nobody for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.priorities import ahead_of
from prefect_dstack.domain.run_record import RunRecord

START = datetime(2026, 1, 1, tzinfo=UTC)


def run(name: str, priority: int | None, tried: float | None, **keys: object) -> RunRecord:
    """A run that last tried so many seconds after the start."""
    return RunRecord.model_validate(
        {
            "kind": "task",
            "name": name,
            "number": 1,
            "configuration": {"type": "task", "priority": priority},
            "directory": "/",
            "runtime": "docker",
            "created_at": START,
            "tried_at": None if tried is None else START + timedelta(seconds=tried),
            **keys,
        }
    )


def first(mine: RunRecord, *others: RunRecord, at: float = 20.0) -> str | None:
    found = ahead_of(mine, others, START + timedelta(seconds=at), patience=30.0)
    return None if found is None else found.name


def test_a_higher_priority_that_waits_tries_first() -> None:
    assert first(run("low", 10, 15), run("high", 50, 12)) == "high"
    assert first(run("low", None, 15), run("high", 1, 12)) == "high"


def test_one_that_has_tried_since_does_not_hold_up_the_next() -> None:
    assert first(run("low", 10, 15), run("high", 50, 16)) is None


def test_a_newcomer_lets_those_try_first_that_waited_before() -> None:
    assert (
        first(run("new", 10, None, created_at=START + timedelta(seconds=18)), run("high", 50, 12)) == "high"
    )


def test_nobody_waits_for_what_does_not_wait_or_try_any_more() -> None:
    mine = run("low", 10, 15)

    assert first(mine, run("equal", 10, 12), run("running", 90, None)) is None
    assert first(mine, run("over", 90, 12, state="failed")) is None
    assert first(mine, run("dead", 90, 12), at=60.0) is None
    assert first(mine, run("low", 90, 12)) is None


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 20)), min_size=1, max_size=6))
def test_somebody_always_may_try(waiting: list[tuple[int, float]]) -> None:
    runs = [run(f"r{number}", *one) for number, one in enumerate(waiting)]

    assert any(first(one, *runs) is None for one in runs)
