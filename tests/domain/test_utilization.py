"""A run ends when one of its accelerators was used too little for a whole window, and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.utilization import Utilization

percents = st.lists(st.integers(0, 100), min_size=1, max_size=30)


def idle_after(used: list[dict[str, int]], least: int = 10, window: float = 60.0) -> list[str | None]:
    """What is idle after each look, ten seconds apart."""
    use = Utilization(least, window)
    found = []
    for number, one in enumerate(used):
        use.note(one, number * 10.0)
        found.append(use.idle())
    return found


def test_one_that_idles_for_the_window_is_named() -> None:
    found = idle_after([{"a": 90, "b": 3}] * 7)

    assert found == [None] * 6 + ["b"]


def test_a_moment_of_work_begins_the_window_anew() -> None:
    found = idle_after([{"a": 3}] * 6 + [{"a": 10}] + [{"a": 3}] * 7)

    assert found == [None] * 13 + ["a"]


def test_one_of_which_nothing_is_known_is_not_idle() -> None:
    assert idle_after([{"a": 3}] * 6 + [{}] + [{"a": 3}] * 6) == [None] * 13


@given(percents)
def test_it_is_idle_as_long_as_every_look_says_so(percents: list[int]) -> None:
    found = idle_after([{"a": percent} for percent in percents])

    for number, name in enumerate(found):
        window = percents[max(0, number - 6) : number + 1]
        assert (name == "a") == (number >= 6 and all(percent < 10 for percent in window))
