"""Random faults during random operations: in the end everything is as it should be, and no request was lost.

A failure tells its seed, which is in the name of the test too: `CHAOS_SEED=7 make test-slow` repeats it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.chaos.commands import prepare
from tests.chaos.plan import plan
from tests.chaos.run import Run
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    # A seed that fails has found something: to try it again would hide that.
    pytest.mark.flaky(reruns=0),
    pytest.mark.skipif(shutil.which("ss") is None, reason="it looks at ports with ss, of iproute2"),
    pytest.mark.usefixtures("connected", "disk"),
]

TURNS, RUNS = 12, 4
DISK = "size=64m,mode=700"
CHOSEN = os.environ.get("CHAOS_SEED")
SEEDS = [int(seed) for seed in CHOSEN.split(",")] if CHOSEN else random.sample(range(1, 1_000_000), RUNS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server that may be killed; neither it nor what starts commands belongs to a test's home."""
    prepare()
    server = PrefectServer(tmp_path_factory.mktemp("chaos") / "server")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def disk(home: Home) -> Iterator[None]:
    """Give the home a small disk of its own, where that is allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", home.path], check=False)
    yield
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", home.path], check=True)


@pytest.fixture
def connected(server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all commands use that server."""
    monkeypatch.setenv("PREFECT_API_URL", server.url)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_is_as_it_should_be_after_a_random_run(seed: int, home: Home, server: PrefectServer) -> None:
    run = Run(plan(seed, TURNS), home, server)
    try:
        run.begin()
        run.go()
    finally:
        run.end()
    assert not run.problems, run.report()
