from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.gateways.latency import BUCKETS, mean, quantile
from prefect_dstack.gateways.observation import ReplicaStatistics


def counts(durations: list[int]) -> list[int]:
    return [sum(bucket.low <= it <= bucket.high for it in durations) for bucket in BUCKETS]


def test_buckets_follow_each_other_without_a_gap() -> None:
    assert BUCKETS[0].low == 0
    assert BUCKETS[-1].low > 30_000_000
    assert all(next_.low == bucket.high + 1 for bucket, next_ in itertools.pairwise(BUCKETS))


def test_nothing_is_known_of_nothing() -> None:
    assert quantile(counts([]), 0.95) is None
    assert mean(counts([])) is None


@given(st.lists(st.integers(1000, 30_000_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_exact_to_a_bucket(durations: list[int], share: float) -> None:
    exact = sorted(durations)[max(0, -(-len(durations) * share // 1).__int__() - 1)] / 1000
    estimated = quantile(counts(durations), share)
    assert estimated is not None
    assert exact / 1.51 <= estimated <= exact * 1.51


@given(st.lists(st.integers(1000, 30_000_000), min_size=1, max_size=200))
def test_a_mean_is_exact_to_half_a_bucket(durations: list[int]) -> None:
    estimated = mean(counts(durations))
    assert estimated == pytest.approx(sum(durations) / len(durations) / 1000, rel=0.26)


def statistics(process: int, requests: int, errors: int) -> ReplicaStatistics:
    server = {f"hrsp_{n}xx": "" for n in "1345"}
    server |= {"hrsp_2xx": str(requests), "hrsp_5xx": str(errors), "econ": str(errors), "eresp": ""}
    return ReplicaStatistics.of(process, server, counts([5000] * requests))


def test_what_happened_since_is_a_difference_unless_the_counting_began_anew() -> None:
    before, after = statistics(1, 10, 1), statistics(1, 30, 3)
    assert after.since(before).requests == 22
    assert after.since(before).connection_errors == 2
    assert statistics(2, 5, 0).since(before).requests == 5


def test_errors_are_a_share_of_all_that_was_asked() -> None:
    assert statistics(1, 0, 0).error_rate is None
    assert statistics(1, 8, 2).error_rate == pytest.approx(4 / 12)
