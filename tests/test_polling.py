from __future__ import annotations

import pytest

from tests.polling import wait_until


def test_gives_the_first_true_result() -> None:
    results = iter([0, None, "", "there"])
    assert wait_until(lambda: next(results), 5, interval=0.001) == "there"


def test_tries_once_even_with_no_time_left() -> None:
    assert wait_until(lambda: "there", 0) == "there"


def test_failure_names_what_was_waited_for_and_the_last_result() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0.01 s: the moon \(last result: \[\]\)"):
        wait_until(list, 0.01, "the moon", interval=0.001)


def test_errors_of_the_condition_are_not_waited_out() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0, 60)
