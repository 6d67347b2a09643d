"""A canary is promoted, rejected or left undecided for the right reasons."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import Canary
from prefect_dstack.domain.canary import Figures, judge, replicas_for, steps_of, weights_for

TERMS = Canary(max_error_rate="1%", max_latency_p95_ratio=1.5)


def figures(requests: int, failed: int = 0, p95: float | None = 100.0) -> Figures:
    return Figures(requests=requests, failed=failed, p95=p95)


@st.composite
def any_steps(draw: st.DrawFn) -> list[str]:
    shares = draw(st.sets(st.integers(1, 998), min_size=1, max_size=10))
    return [f"{share / 10}%" for share in sorted(shares)]


@st.composite
def any_figures(draw: st.DrawFn) -> Figures:
    requests = draw(st.integers(0, 100_000))
    p95 = draw(st.floats(0.1, 60_000)) if requests else None
    return figures(requests, draw(st.integers(0, requests)), p95)


@pytest.mark.parametrize(
    ("old", "new", "over", "decision", "words"),
    [
        # Before the time is up, only what is beyond doubt counts.
        (figures(0), figures(0), False, "wait", ""),
        (figures(900), figures(1, failed=1), False, "wait", ""),
        (figures(900), figures(2, failed=2), False, "wait", ""),
        (figures(900), figures(3, failed=3), False, "reject", "failed 100.0 % of 3 requests"),
        (figures(900), figures(150, failed=3), False, "wait", ""),
        (figures(900), figures(150, failed=15), False, "reject", "failed 10.0 % of 150 requests"),
        (figures(900, p95=10), figures(150, p95=900), False, "wait", ""),
        # At its end, what was counted does.
        (figures(900), figures(100), True, "promote", ""),
        (figures(900), figures(100, failed=1), True, "promote", ""),
        (figures(900), figures(100, failed=2), True, "reject", "failed 2.0 % of 100 requests"),
        (figures(900), figures(0, p95=None), True, "unsure", "got 0 requests in 600 s"),
        (figures(900), figures(19, failed=1), True, "unsure", "got 19 requests"),
        # An old revision that fails too is no reason to keep it.
        (figures(900, failed=90), figures(100, failed=11), True, "promote", ""),
        (figures(900, failed=90), figures(100, failed=12), True, "reject", "the old revision 10.0 % of 900"),
        # Latency is compared where both have answered enough, and differ by more than noise.
        (figures(900), figures(100, p95=150), True, "promote", ""),
        (figures(900), figures(100, p95=151), True, "reject", "p95 latency was 151 ms"),
        (figures(900, p95=1), figures(100, p95=5), True, "promote", ""),
        (figures(900, p95=1), figures(100, p95=7), True, "reject", "p95 latency"),
        (figures(19), figures(100, p95=900), True, "promote", ""),
        (figures(0, p95=None), figures(100, p95=900), True, "promote", ""),
    ],
)
def test_a_canary_is_judged_by_what_it_did_beside_the_old_revision(
    old: Figures, new: Figures, over: bool, decision: str, words: str
) -> None:
    verdict = judge(old, new, TERMS, over=over)
    assert verdict.decision == decision
    assert words in verdict.reason
    assert bool(verdict.reason) == (decision in ("reject", "unsure"))


@given(any_figures(), any_figures())
def test_the_end_of_the_time_always_brings_a_decision(old: Figures, new: Figures) -> None:
    assert judge(old, new, TERMS, over=True).decision != "wait"


@given(any_figures(), any_figures())
def test_what_is_rejected_early_is_not_promoted_at_the_end(old: Figures, new: Figures) -> None:
    if judge(old, new, TERMS, over=False).decision == "reject":
        assert judge(old, new, TERMS, over=True).decision == "reject"


@given(any_figures(), any_figures(), st.integers(1, 1000))
def test_more_failures_never_help_a_canary(old: Figures, new: Figures, more: int) -> None:
    worse = new.model_copy(update={"failed": min(new.requests, new.failed + more)})
    if judge(old, worse, TERMS, over=True).decision == "promote":
        assert judge(old, new, TERMS, over=True).decision == "promote"


@given(st.floats(0.1, 99.9), st.integers(1, 50), st.integers(1, 50), st.integers(1, 5))
def test_no_canary_replica_gets_more_requests_than_an_old_one_unless_there_is_no_room(
    weight: float, old: int, wanted: int, room: int
) -> None:
    count = replicas_for(weight, old, wanted, room)
    assert 1 <= count <= max(1, min(wanted, room))
    if count < min(wanted, room):
        old_weight, new_weight = weights_for(weight, old, count)
        assert new_weight <= old_weight


@given(st.floats(0.5, 99.5), st.integers(1, 20))
def test_the_weights_give_the_canary_its_share(weight: float, old: int) -> None:
    count = replicas_for(weight, old, 1000, 1000)
    old_weight, new_weight = weights_for(weight, old, count)
    assert 1 <= old_weight <= 256
    assert 1 <= new_weight <= 256
    share = 100 * new_weight * count / (new_weight * count + old_weight * old)
    assert share == pytest.approx(weight, abs=0.3)


@given(any_steps(), st.integers(0, 20), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
def test_a_canary_grows_from_step_to_step_within_its_room(
    shares: list[str], pause: int, old: int, wanted: int, room: int
) -> None:
    steps = steps_of(Canary(steps=shares, pause=pause), old, wanted, room)
    assert [f"{step.weight}%" for step in steps] == shares
    assert {step.duration for step in steps} == {pause}
    replicas = [step.replicas for step in steps]
    assert replicas == sorted(replicas), "none is removed to give the canary more"
    assert 1 <= replicas[0] <= replicas[-1] <= min(wanted, room)
    weights = [weights_for(step.weight, old, step.replicas) for step in steps]
    real = [
        new_weight * step.replicas / max(old_weight * old, 1)
        for step, (old_weight, new_weight) in zip(steps, weights, strict=True)
    ]
    for less, more in itertools.pairwise(real):
        assert more >= less * 0.97, "but for what whole weights allow"


@given(st.integers(1, 99), st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20))
def test_a_canary_without_steps_is_one_of_a_single_step(
    weight: int, seconds: int, old: int, wanted: int
) -> None:
    plain = steps_of(Canary(weight=f"{weight}%", duration=seconds), old, wanted, 20)
    assert plain == steps_of(Canary(steps=[f"{weight}%"], pause=seconds), old, wanted, 20)


def test_too_few_requests_at_a_step_name_what_to_raise() -> None:
    verdict = judge(figures(900), figures(3), Canary(steps=["5%"], pause="2m"), over=True)
    assert verdict.decision == "unsure"
    assert "got 3 requests in 120 s" in verdict.reason
    assert "raise 'steps' or 'pause'" in verdict.reason
