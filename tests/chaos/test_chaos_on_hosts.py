"""The same on hosts that lose their power and their network, with containers behind a gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.clock import SetClock
from tests.chaos.conftest import seeds
from tests.chaos.costs import Ledger
from tests.chaos.hosts import Hosts
from tests.chaos.plan import plan
from tests.chaos.run import Run
from tests.flows.lab import Lab
from tests.home import Home
from tests.prefect_server import PrefectServer
from tests.testbed.testbed import Testbed

pytestmark = [
    pytest.mark.testbed,
    pytest.mark.timeout(1800),
    # A seed that fails has found something: to try it again would hide that.
    pytest.mark.flaky(reruns=0),
    pytest.mark.usefixtures("connected"),
]

TURNS, RUNS = 10, 2


@pytest.fixture
def lab(testbed: Testbed) -> Iterator[Lab]:
    """Hosts of each run's own."""
    lab = Lab(testbed)
    yield lab
    testbed.remove(*lab.all)


@pytest.mark.parametrize("seed", seeds(RUNS))
def test_all_is_as_it_should_be_after_a_random_run(
    seed: int, lab: Lab, home: Home, server: PrefectServer, clock: SetClock
) -> None:
    ledger = Ledger()
    place = Hosts(lab, home, ledger)
    Run(plan(seed, TURNS, place.faults), home, place, ledger, server, clock).check()
