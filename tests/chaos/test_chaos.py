"""Random faults during random operations: in the end everything is as it should be, and no request was lost.

A failure tells its seed, which is in the name of the test too: `CHAOS_SEED=7 make test-slow` repeats it. The
fast tests try one new seed, for a shorter run.
"""

from __future__ import annotations

import shutil

import pytest

from tests.chaos.clock import SetClock
from tests.chaos.conftest import seeds
from tests.chaos.costs import Ledger
from tests.chaos.machine import Machine
from tests.chaos.plan import plan
from tests.chaos.run import Run
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("ss") is None, reason="it looks at ports with ss, of iproute2"),
    pytest.mark.usefixtures("connected", "disk"),
]

TURNS, RUNS = 12, 4
FEW_TURNS = 5


def check(seed: int, turns: int, home: Home, server: PrefectServer, clock: SetClock) -> None:
    """Do a run on this machine."""
    ledger = Ledger()
    place = Machine(home, ledger)
    Run(plan(seed, turns, place.faults), home, place, ledger, server, clock).check()


@pytest.mark.parametrize("seed", seeds(1))
def test_all_is_as_it_should_be_after_a_few_turns(
    seed: int, home: Home, server: PrefectServer, clock: SetClock
) -> None:
    check(seed, FEW_TURNS, home, server, clock)


@pytest.mark.slow
# A seed that fails has found something: to try it again would hide that.
@pytest.mark.flaky(reruns=0)
@pytest.mark.parametrize("seed", seeds(RUNS))
def test_all_is_as_it_should_be_after_a_random_run(
    seed: int, home: Home, server: PrefectServer, clock: SetClock
) -> None:
    check(seed, TURNS, home, server, clock)
