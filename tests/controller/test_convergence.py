"""A service gets to its goal from wherever it is, whatever is interrupted, within its limits on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.backends.base import Offer
from prefect_dstack.controller import convergence
from prefect_dstack.controller.convergence import converge, is_reached
from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.groups import replica_numbers
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import (
    CapacityError,
    DeploymentError,
    HostUnreachableError,
    NoRoomError,
    ReplicaNotReadyError,
)
from prefect_dstack.runtimes.base import ReplicaStatus
from tests.controller.world import SERVICE, SPEC, FakeWorld, Interrupted, goal, unreachable

LOG = logging.getLogger("test")


def run(wanted: Goal, world: FakeWorld) -> None:
    converge(wanted, world, world, LOG, flow_run="run")


limits = st.builds(Limits, max_surge=st.integers(0, 3), max_unavailable=st.integers(0, 3)).filter(
    lambda it: it.max_surge + it.max_unavailable > 0
)


def test_starts_what_is_wanted() -> None:
    world = FakeWorld()
    run(goal(1, 2), world)
    assert world.serving == {"hello-1-0", "hello-1-1"}


def test_stamps_what_it_creates_with_the_flow_run() -> None:
    world = FakeWorld()
    run(goal(1, 1), world)
    assert world.stamps["hello-1-0"].flow_run == "run"


def test_does_nothing_at_its_goal() -> None:
    world = FakeWorld()
    run(goal(1, 2), world)
    assert is_reached(goal(1, 2), world)
    done = len(world.actions)
    run(goal(1, 2), world)
    assert len(world.actions) == done


def test_a_replica_that_ended_is_replaced() -> None:
    world = FakeWorld()
    run(goal(1, 2), world)
    world.replicas["hello-1-1"] = ReplicaStatus(state="exited")
    assert not is_reached(goal(1, 2), world)
    run(goal(1, 2), world)
    assert len(world.serving) == 2


def test_offers_are_asked_for_anew_in_each_round_but_the_first() -> None:
    world = FakeWorld()
    offers = [world.offers(goal(1, 1).template(0).spec.requirements)]
    world.looks_for_offers = 0
    converge(goal(1, 3, Limits(max_surge=1)), world, world, LOG, flow_run="", offers=offers)
    asked_first = world.looks_for_offers
    converge(goal(2, 3, Limits(max_surge=1)), world, world, LOG, flow_run="", offers=offers)
    assert asked_first == 0
    assert world.looks_for_offers == 2  # three replacements, one at a time


def of_groups(
    revision: int, counts: dict[str, int], limits: Limits | None = None, router: str | None = None
) -> Goal:
    """A goal with a group of each name, whose replicas run an image of that name."""
    wanted = goal(revision, 0, limits)
    return dataclasses.replace(
        wanted,
        numbers=replica_numbers(list(counts.values())),
        templates=tuple(
            dataclasses.replace(
                wanted.templates[0],
                spec=SPEC.model_copy(update={"image": name}),
                direct=router in (None, name),
            )
            for name in counts
        ),
        groups={number: tuple(counts) for number in range(1, revision + 1)},
        routers={} if router is None else dict.fromkeys(range(1, revision + 1), router),
    )


def images(world: FakeWorld) -> dict[str, str | None]:
    return {name: world.specs[name].image for name in world.serving}


def test_each_group_has_replicas_of_its_own() -> None:
    world = FakeWorld()
    run(of_groups(1, {"web": 1, "work": 3}), world)
    assert images(world) == {
        "hello-1-0": "web",
        "hello-1-1": "work",
        "hello-1-3": "work",
        "hello-1-5": "work",
    }


def test_a_group_that_shrinks_or_ends_leaves_the_others_alone() -> None:
    world = FakeWorld()
    run(of_groups(1, {"web": 2, "work": 3}), world)
    done = len(world.actions)
    run(of_groups(1, {"web": 2, "work": 1}), world)
    assert images(world) == {"hello-1-0": "web", "hello-1-1": "work", "hello-1-2": "web"}
    assert not [action for action in world.actions[done:] if "launch" in action]


@settings(max_examples=60, deadline=None)
@given(
    before=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), min_size=1),
    after=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), min_size=1),
    fail_at=st.integers(1, 40),
)
def test_groups_that_come_and_go_are_completed_by_whoever_comes_next(
    before: dict[str, int], after: dict[str, int], fail_at: int
) -> None:
    world = FakeWorld()
    run(of_groups(1, before), world)
    world._fail_at = len(world.actions) + fail_at
    wanted = dataclasses.replace(of_groups(2, after), groups={1: tuple(before), 2: tuple(after)})
    with contextlib.suppress(Interrupted, DeploymentError):
        run(wanted, world)
    world._fail_at = 0
    run(wanted, world)
    assert set(world.replicas) == world.serving
    assert Counter(images(world).values()) == after


class Routed(FakeWorld):
    """A world that notes what a client's request would meet: a router, and which workers that knows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.met: list[set[str]] = []

    def _act(self, action: str) -> None:
        super()._act(action)
        members = self.state.routes[SERVICE].replicas
        for name in self.serving:
            if members[name].effective_weight:
                self.met.append(self.told.get(name, set()) & set(self.replicas))


def test_a_router_gets_requests_only_while_it_knows_replicas_that_are_there() -> None:
    """New ones are ready before it sends requests there, and gone from it before they are removed."""
    world = Routed()
    run(of_groups(1, {"router": 1, "work": 2}, router="router"), world)
    assert world.told == {"hello-1-0": {"hello-1-1", "hello-1-3"}}
    members = world.state.routes[SERVICE].replicas
    assert {name for name, member in members.items() if member.effective_weight} == {"hello-1-0"}
    world.met.clear()

    run(of_groups(2, {"router": 1, "work": 3}, router="router"), world)

    assert world.told["hello-2-0"] == {"hello-2-1", "hello-2-3", "hello-2-5"}
    assert world.met
    assert all(world.met)
    told = [action for action in world.actions if action.startswith(("tell", "remove", "drain"))]
    for number in (1, 3):
        first, last = (told.index(f"{verb} hello-1-{number}") for verb in ("drain", "remove"))
        assert any(action.startswith("tell") for action in told[first:last])


def test_a_router_that_has_forgotten_its_workers_is_told_again() -> None:
    world = FakeWorld()
    wanted = of_groups(1, {"router": 1, "work": 2}, router="router")
    run(wanted, world)
    world.told.clear()

    run(wanted, world)

    assert world.told == {"hello-1-0": {"hello-1-1", "hello-1-3"}}


def test_a_router_beside_a_revision_that_is_to_stay_knows_its_own_replicas_only() -> None:
    world = FakeWorld()
    run(of_groups(1, {"router": 1, "work": 1}, router="router"), world)
    beside = of_groups(2, {"router": 1, "work": 1}, Limits(max_surge=0), router="router")

    run(dataclasses.replace(beside, untouched=1), world)

    assert world.told == {"hello-1-0": {"hello-1-1"}, "hello-2-0": {"hello-2-1"}}


def test_a_revision_that_is_to_stay_is_not_touched() -> None:
    world = FakeWorld()
    run(goal(1, 2), world)
    run(dataclasses.replace(goal(2, 1, Limits(max_surge=0)), untouched=1), world)
    assert world.serving == {"hello-1-0", "hello-1-1", "hello-2-0"}


def test_the_failure_that_the_user_can_change_is_the_one_that_is_raised() -> None:
    class Broken(FakeWorld):
        def wait_until_ready(self, found: object, template: object, abandoned: object) -> None:
            if found.replica.stamp.replica == 0:  # type: ignore[attr-defined]
                raise HostUnreachableError("host: no answer")
            raise ReplicaNotReadyError("hello-1-1: not ready")

    with pytest.raises(ReplicaNotReadyError):
        run(goal(1, 2), Broken())


def test_a_lack_of_capacity_is_waited_out_as_long_as_the_goal_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "CAPACITY_PAUSE", 0.0)
    world = FakeWorld(fail_at=2, failure=lambda: CapacityError("none left"))

    run(goal(1, 2, capacity_timeout=60), world)

    assert world.serving == {"hello-1-0", "hello-1-1"}
    # Each attempt looks for offers of its own.
    assert world.looks_for_offers > 1


def test_machines_that_have_room_later_are_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "CAPACITY_PAUSE", 0.0)
    world = FakeWorld()
    offers, full = world.offers, iter([True, True, False])

    def later(requirements: Requirements) -> Sequence[Offer]:
        if next(full, False):
            raise NoRoomError("every host is full")
        return offers(requirements)

    monkeypatch.setattr(world, "offers", later)
    run(goal(1, 1, capacity_timeout=60), world)

    assert world.serving == {"hello-1-0"}


def test_a_lack_of_capacity_is_a_failure_where_nothing_is_said() -> None:
    with pytest.raises(CapacityError, match="none left"):
        run(goal(1, 2), FakeWorld(fail_at=1, failure=lambda: CapacityError("none left")))


def test_replicas_that_end_as_fast_as_they_start_are_given_up() -> None:
    class Crashing(FakeWorld):
        def register(self, found: object, route: object, weight: int) -> None:
            super().register(found, route, weight)  # type: ignore[arg-type]
            name = found.replica.name  # type: ignore[attr-defined]
            self.replicas[name] = ReplicaStatus(state="exited")

    with pytest.raises(DeploymentError, match="end as fast as they are started"):
        run(goal(1, 1), Crashing())


@settings(max_examples=60, deadline=None)
@given(before=st.integers(0, 4), after=st.integers(0, 4), bounds=limits)
def test_a_rollout_keeps_its_limits(before: int, after: int, bounds: Limits) -> None:
    world = FakeWorld()
    run(goal(1, before, Limits(max_surge=4)), world)
    world.fewest_serving, world.most_existing = None, 0
    run(goal(2, after, bounds), world)
    assert world.serving == {f"hello-2-{number}" for number in range(after)}
    assert world.most_existing <= max(after + bounds.max_surge, before)
    fewest: int | None = vars(world)["fewest_serving"]
    if fewest is not None:
        assert fewest >= min(before, after - bounds.max_unavailable)


@settings(max_examples=80, deadline=None)
@given(
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    bounds=limits,
    fail_at=st.integers(1, 30),
    interrupted=st.booleans(),
    scaled=st.integers(0, 3),
)
def test_whoever_comes_next_completes_or_undoes_it(
    before: int, after: int, bounds: Limits, fail_at: int, interrupted: bool, scaled: int
) -> None:
    """An interruption at any action, of any kind: the next one gets to its own goal from what is left."""
    world = FakeWorld()
    run(goal(1, before, Limits(max_surge=4)), world)
    world._fail_at = len(world.actions) + fail_at
    world._failure = Interrupted if interrupted else unreachable
    with contextlib.suppress(Interrupted, HostUnreachableError, DeploymentError):
        run(goal(2, after, bounds), world)
    world._fail_at = 0
    for wanted in (goal(1, before, bounds), goal(1, scaled, bounds), goal(None, 0, bounds)):
        run(wanted, world)
        assert world.serving == {f"hello-{wanted.revision}-{number}" for number in range(wanted.replicas)}
        assert set(world.replicas) == world.serving
        assert set(world.state.routes[SERVICE].replicas) == world.serving
