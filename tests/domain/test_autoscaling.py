"""How many replicas a load asks for: within bounds, at once when it grows, and without flapping."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.domain.autoscaling import Load, Sample, ScalingTerms, decide, needed

RPS = ScalingTerms("rps", target=10, least=1, most=8, window=5, up_delay=5, down_delay=60)
IN_FLIGHT = ScalingTerms("concurrency", target=8, least=1, most=8, window=5, up_delay=2, down_delay=60)


def trace(rates: list[float], replicas: int = 1) -> list[Sample]:
    """What the gateway shows, second by second, of so many requests per second."""
    samples, total = [Sample(0.0, Load(), replicas=replicas)], 0.0
    for second, rate in enumerate(rates, start=1):
        total += rate
        samples.append(Sample(float(second), Load(requests=int(total)), replicas=replicas))
    return samples


def run(rates: list[float], terms: ScalingTerms, start: int = 1) -> list[int]:
    """The number of replicas, second by second, that the autoscaler asks for."""
    current, history, total, numbers = start, [Sample(0.0, Load())], 0.0, []
    for second, rate in enumerate(rates, start=1):
        total += rate
        history.append(Sample(float(second), Load(requests=int(total)), replicas=current))
        current = decide(history, terms, current).replicas
        numbers.append(current)
    return numbers


def test_grows_in_seconds() -> None:
    numbers = run([5.0] * 20 + [100.0] * 20, RPS)
    assert numbers[19] == 1
    assert max(numbers[20:35]) > 1
    assert numbers[-1] == 8, "bounded"


def test_shrinks_only_when_it_was_too_much_for_the_whole_delay() -> None:
    numbers = run([75.0] * 30 + [5.0] * 80, RPS, start=8)
    assert set(numbers[:85]) == {8}
    assert numbers[-1] == 1


def test_a_wave_shorter_than_the_delays_moves_nothing() -> None:
    wave = ([5.0] * 10 + [30.0] * 3) * 12
    assert set(run(wave, ScalingTerms("rps", 10, 1, 8, window=5, up_delay=10, down_delay=30))) == {1}


def test_a_controller_that_has_just_begun_waits_for_the_delay_too() -> None:
    patient = ScalingTerms("rps", 10, 1, 8, window=5, up_delay=300)
    seconds = range(302)
    samples = [Sample(float(at), Load(requests=100 * at)) for at in seconds]
    grown = [decide(samples[: at + 1], patient, 1).replicas for at in seconds]
    assert set(grown[:300]) == {1}
    assert grown[-1] == 8


def test_says_why() -> None:
    busy = [Sample(float(at), Load(in_flight=31)) for at in range(5)]
    decision = decide(busy, IN_FLIGHT, 2)
    assert (decision.replicas, decision.reason) == (4, "31 in flight, target 8")


def test_a_request_that_is_held_wakes_a_service_at_zero() -> None:
    terms = ScalingTerms("rps", 10, 0, 4)
    assert decide([Sample(0.0, Load())], terms, 0).replicas == 0
    assert decide([Sample(0.0, Load(held=3))], terms, 0).replicas == 1


TO_ZERO = ScalingTerms("concurrency", target=4, least=0, most=2, up_delay=1, down_delay=10)


def test_any_request_keeps_the_last_replica_for_the_whole_delay() -> None:
    """Also one that was answered between two looks, so that nobody has seen it in flight."""
    samples = [Sample(float(at), Load(requests=int(at >= 60))) for at in range(80)]

    numbers = [decide(samples[: at + 1], TO_ZERO, 1).replicas for at in range(60, 80)]

    assert numbers[:10] == [1] * 10
    assert numbers[-1] == 0


def test_a_service_that_has_just_been_woken_stays_awake() -> None:
    asleep = [Sample(float(at), Load(), replicas=0) for at in range(120)]
    woken = [Sample(120.0, Load(held=1), replicas=0), Sample(121.0, Load(requests=1))]
    quiet = [Sample(float(at), Load(requests=1)) for at in range(122, 140)]
    samples = [*asleep, *woken, *quiet]

    numbers = [decide(samples[: at + 1], TO_ZERO, 1).replicas for at in range(121, 140)]

    assert numbers[:9] == [1] * 9
    assert numbers[-1] == 0


def test_a_little_load_is_not_none() -> None:
    samples = [Sample(float(at), Load(requests=at // 5)) for at in range(120)]

    assert decide(samples, TO_ZERO, 2).replicas == 1


def test_a_reload_of_the_gateway_is_no_burst() -> None:
    samples = trace([10.0] * 30)
    counted_anew = [
        Sample(sample.at + 31, sample.load, process=2, replicas=1) for sample in trace([10.0] * 10)
    ]
    assert decide([*samples, *counted_anew], RPS, 1).replicas == 1


def test_slow_answers_ask_for_more_and_fast_ones_for_one_less() -> None:
    terms = ScalingTerms("latency_p95", target=0.2, least=1, most=8)
    assert needed(0.5, terms, 2) == 5
    assert needed(0.21, terms, 2) == 2
    assert needed(0.01, terms, 4) == 3


@settings(deadline=None, max_examples=40)
@given(
    rates=st.lists(st.floats(0, 500), min_size=1, max_size=120),
    least=st.integers(0, 3),
    more=st.integers(1, 6),
    start=st.integers(0, 12),
    up=st.integers(0, 30),
    down=st.integers(0, 60),
)
def test_the_bounds_are_kept(
    rates: list[float], least: int, more: int, start: int, up: int, down: int
) -> None:
    terms = ScalingTerms("rps", 10, least, least + more, window=5, up_delay=up, down_delay=down)
    numbers = run(rates, terms, start)
    assert all(least <= number <= least + more for number in numbers)


@settings(deadline=None, max_examples=40)
@given(rate=st.floats(0, 200), seconds=st.integers(200, 260))
def test_a_steady_load_ends_in_one_number(rate: float, seconds: int) -> None:
    numbers = run([rate] * seconds, RPS, start=4)
    assert len(set(numbers[-60:])) == 1


@settings(deadline=None, max_examples=40)
@given(rates=st.lists(st.floats(0, 200), min_size=80, max_size=160))
def test_nothing_is_removed_that_the_last_delay_needed(rates: list[float]) -> None:
    numbers = run(rates, RPS, start=4)
    for second in range(1, len(numbers)):
        if numbers[second] < numbers[second - 1]:
            last = [sum(rates[max(0, at - 5) : at]) / 5 for at in range(second - 50, second)]
            assert numbers[second] >= min(RPS.most, max(last) / RPS.target - 1)
