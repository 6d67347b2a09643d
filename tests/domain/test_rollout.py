"""The plan of a rollout, followed from any starting point, keeps its promises."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import Rollout
from prefect_dstack.domain.rollout import Limits, Running, Wanted, after, all_steps, next_steps

phases = st.sampled_from(["launched", "serving", "draining", "dead"])


def world(max_size: int = 8) -> st.SearchStrategy[list[Running]]:
    return st.dictionaries(st.tuples(st.integers(1, 3), st.integers(0, 4)), phases, max_size=max_size).map(
        lambda found: [Running(revision=r, replica=n, phase=p) for (r, n), p in found.items()]
    )


# Revisions whose groups have other names, another order, or none.
groups = st.dictionaries(
    st.integers(1, 3),
    st.permutations(["a", "b", "c"]).flatmap(
        lambda names: st.integers(1, 3).map(lambda count: tuple(names[:count]))
    ),
)
numbers = st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True).map(
    lambda found: tuple(sorted(found))
)
wants = st.builds(
    Wanted, revision=st.one_of(st.none(), st.integers(1, 3)), numbers=numbers, groups=groups
).map(lambda wanted: Wanted(revision=None) if wanted.revision is None else wanted)
limits = st.builds(Limits, max_surge=st.integers(0, 3), max_unavailable=st.integers(0, 3)).filter(
    lambda limits: limits.max_surge + limits.max_unavailable > 0
)


def serving(running: list[Running]) -> int:
    return sum(r.phase == "serving" for r in running)


def serving_of(running: list[Running], wanted: Wanted) -> Counter[str]:
    """How many serve of each group."""
    return Counter(wanted.group(r.revision, r.replica) for r in running if r.phase == "serving")


def needed_of(wanted: Wanted) -> Counter[str]:
    """How many are wanted of each group."""
    revision = wanted.revision
    return Counter() if revision is None else Counter(wanted.group(revision, it) for it in wanted.numbers)


@given(world(), wants, limits, st.data())
def test_every_rollout_ends_and_keeps_its_limits_in_whatever_order_steps_finish(
    running: list[Running], wanted: Wanted, limits: Limits, data: st.DataObject
) -> None:
    floor = min(serving(running), max(wanted.replicas - limits.max_unavailable, 0))
    ceiling = max(len(running), wanted.replicas + limits.max_surge)
    before = serving_of(running, wanted)
    floors = {
        group: min(before[group], max(count - limits.max_unavailable, 0))
        for group, count in needed_of(wanted).items()
    }
    for _ in range(60):
        steps = next_steps(running, wanted, limits)
        if not steps:
            break
        for step in data.draw(st.permutations(steps)):
            running = after(running, step)
            assert serving(running) >= floor
            assert len(running) <= ceiling
            now = serving_of(running, wanted)
            assert all(now[group] >= least for group, least in floors.items())
    assert not next_steps(running, wanted, limits)
    assert {(r.revision, r.replica, r.phase) for r in running} == {
        (wanted.revision, number, "serving") for number in wanted.numbers
    }


@given(world(), wants, limits, st.data())
def test_a_rollout_that_is_interrupted_anywhere_is_completed_by_the_next(
    running: list[Running], wanted: Wanted, limits: Limits, data: st.DataObject
) -> None:
    for _ in range(60):
        steps = next_steps(running, wanted, limits)
        if not steps:
            break
        survived = data.draw(st.lists(st.sampled_from(steps), unique=True, max_size=len(steps)))
        for step in survived or steps[:1]:
            running = after(running, step)
    assert {(r.revision, r.replica) for r in running if r.phase == "serving"} == {
        (wanted.revision, number) for number in wanted.numbers
    }


def test_the_old_replica_is_drained_only_when_the_new_one_serves() -> None:
    running = [Running(revision=1, replica=0, phase="serving")]
    wanted = Wanted(revision=2, numbers=(0,))
    actions: list[list[str]] = []
    while steps := next_steps(running, wanted, Limits()):
        actions.append([f"{step.action} {step.revision}" for step in steps])
        for step in steps:
            running = after(running, step)
    assert actions == [["launch 2"], ["route 2"], ["drain 1"], ["remove 1"]]


def test_no_group_is_without_replicas_while_another_revision_takes_over() -> None:
    """What serves is replaced group by group, even where a group is of other numbers than before."""
    running = [Running(revision=1, replica=number, phase="serving") for number in (0, 1, 3)]
    wanted = Wanted(revision=2, numbers=(0, 1, 2), groups={1: ("web", "work"), 2: ("work", "web")})
    rounds: list[list[str]] = []
    while steps := next_steps(running, wanted, Limits()):
        rounds.append([f"{step.action} {step.revision}-{step.replica}" for step in steps])
        for step in steps:
            running = after(running, step)

    assert rounds[:3] == [["launch 2-0"], ["route 2-0"], ["drain 1-1"]]
    order = [step for steps in rounds for step in steps]
    assert order.index("route 2-1") < order.index("drain 1-0")


def test_all_steps_are_those_of_every_round() -> None:
    running = [Running(revision=1, replica=0, phase="dead"), Running(revision=1, replica=1, phase="serving")]
    steps = all_steps(running, Wanted(revision=1, numbers=(0, 1)), Limits())
    assert [f"{step.action} {step.replica}" for step in steps] == ["remove 0", "launch 0", "route 0"]


def test_a_draining_replica_that_is_wanted_again_gets_requests_again() -> None:
    running = [Running(revision=1, replica=0, phase="draining")]
    steps = next_steps(running, Wanted(revision=1, numbers=(0,)), Limits())
    assert [step.action for step in steps] == ["route"]


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        (Rollout(max_surge=1, max_unavailable=0), (1, 0)),
        (Rollout(max_surge="25%", max_unavailable="25%"), (2, 1)),
        (Rollout(max_surge=0, max_unavailable="10%"), (1, 0)),
        (Rollout(strategy="blue-green"), (5, 0)),
        (Rollout(strategy="recreate"), (0, 5)),
    ],
)
def test_a_configured_rollout_becomes_numbers_that_let_it_move(
    rollout: Rollout, expected: tuple[int, int]
) -> None:
    limits = Limits.of(rollout, 5)
    assert (limits.max_surge, limits.max_unavailable) == expected
