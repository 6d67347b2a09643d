"""Plans: the same for the same seed, and with everything in them sooner or later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.plan import LASTING, OF_SERVICES, ON_HOSTS, ON_MACHINE, OPERATIONS, SERVICES, plan

seeds = st.integers(1, 1_000_000)
places = st.sampled_from([ON_MACHINE, ON_HOSTS])


@given(seed=seeds, turns=st.integers(0, 20), faults=places)
def test_a_seed_makes_one_plan(seed: int, turns: int, faults: dict[str, int]) -> None:
    assert plan(seed, turns, faults) == plan(seed, turns, faults)
    assert len(plan(seed, turns, faults).turns) == turns + 2


@given(seed=seeds, faults=places)
def test_every_operation_and_fault_has_what_it_needs(seed: int, faults: dict[str, int]) -> None:
    for turn in plan(seed, 12, faults).turns:
        for operation in turn.operations:
            assert bool(operation.service) == (operation.kind in OF_SERVICES)
        if turn.fault is not None:
            assert turn.fault.service in SERVICES
            assert bool(turn.fault.seconds) == (turn.fault.kind in LASTING)
            assert turn.operations or turn.fault.kind != "kill-command"


@pytest.mark.parametrize("faults", [ON_MACHINE, ON_HOSTS])
def test_nothing_is_left_out_for_ever(faults: dict[str, int]) -> None:
    turns = [turn for seed in range(100) for turn in plan(seed, 10, faults).turns]

    assert {operation.kind for turn in turns for operation in turn.operations} == set(OPERATIONS)
    assert {turn.fault.kind for turn in turns if turn.fault is not None} == set(faults)
