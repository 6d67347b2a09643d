from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.gateways.latency import BUCKETS, UNIT, Durations, Tally, bucket_map, mean, quantile
from prefect_dstack.gateways.observation import ReplicaStatistics


def counts(durations: list[int]) -> list[int]:
    return [sum(bucket.low <= it <= bucket.high for it in durations) for bucket in BUCKETS]


def test_buckets_follow_each_other_without_a_gap() -> None:
    assert BUCKETS[0].low == 0
    assert BUCKETS[-1].low > 30_000_000
    assert all(next_.low == bucket.high + 1 for bucket, next_ in itertools.pairwise(BUCKETS))


def test_the_map_finds_the_bucket_of_every_duration() -> None:
    networks = [line.split() for line in bucket_map().splitlines()]
    found = [(ipaddress.ip_network(network), int(bucket)) for network, bucket in networks]
    assert sum(network.num_addresses for network, _ in found) == 2**32
    for index, bucket in enumerate(BUCKETS):
        for microseconds in (bucket.low, bucket.high):
            address = ipaddress.ip_address(microseconds // UNIT)
            assert [its for network, its in found if address in network] == [index]


def cumulated(durations: Durations) -> dict[str, int]:
    return dict(durations.cumulative())


def test_prometheus_gets_fewer_buckets_each_with_all_below_it() -> None:
    durations = Durations()
    for microseconds in (400, 2_400, 2_500, 199_000, 60_000_000, 200_000_000):
        durations.counts.update(
            index for index, it in enumerate(BUCKETS) if it.low <= microseconds <= it.high
        )
    found = cumulated(durations)
    assert len(found) == 15
    assert (found["0.0025"], found["0.005"]) == (2, 3)
    assert (found["0.1"], found["0.25"]) == (3, 4)
    assert (found["50.0"], found["+Inf"]) == (4, 6)


def test_durations_are_added_up_over_looks() -> None:
    durations = Durations()
    durations.grow({}, {3: Tally(10, 100)})
    durations.grow({3: Tally(10, 100)}, {3: Tally(12, 130), 20: Tally(1, 2000)})
    assert durations.counts == {3: 12, 20: 1}
    assert durations.seconds == pytest.approx(0.213 + 13 * 0.00005)


def test_a_bucket_that_haproxy_has_forgotten_begins_anew() -> None:
    durations = Durations()
    durations.grow({3: Tally(10, 100)}, {3: Tally(2, 25)})
    assert (durations.counts[3], durations.units) == (2, 25)


def test_a_sum_goes_on_when_its_32_bits_are_full_and_never_falls() -> None:
    durations = Durations()
    durations.grow({38: Tally(9, 2**32 - 10)}, {38: Tally(10, 5)})
    assert durations.units == 15
    durations.grow({38: Tally(10, 5)}, {38: Tally(11, 2**32 - 10)})
    assert (durations.counts[38], durations.units) == (2, 15), "the clock was set back"


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
    return ReplicaStatistics.of(process, server, {})


def test_what_happened_since_is_a_difference_unless_the_counting_began_anew() -> None:
    before, after = statistics(1, 10, 1), statistics(1, 30, 3)
    assert after.since(before).requests == 22
    assert after.since(before).connection_errors == 2
    assert statistics(2, 5, 0).since(before).requests == 5


def test_errors_are_a_share_of_all_that_was_asked() -> None:
    assert statistics(1, 0, 0).error_rate is None
    assert statistics(1, 8, 2).error_rate == pytest.approx(4 / 12)
