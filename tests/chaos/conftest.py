"""A Prefect server that may be killed, a clock that may be set, and a disk that may be filled."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator

import pytest

from tests.chaos.clock import SetClock
from tests.forking import renew_server, stop_server
from tests.home import Home
from tests.prefect_server import PrefectServer

DISK = "size=64m,mode=700"
CHOSEN = os.environ.get("CHAOS_SEED")


def seeds(count: int) -> list[int]:
    """Return the seeds that were asked for, or so many new ones."""
    if CHOSEN:
        return [int(seed) for seed in CHOSEN.split(",")]
    # All processes of pytest-xdist must collect the same tests.
    chance = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
    return chance.sample(range(1, 1_000_000), count)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> SetClock:
    """The clock of all commands, and of what they start; the server has the right time."""
    return SetClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def server(clock: SetClock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server that may be killed; neither it nor what starts commands belongs to a test's home."""
    server = PrefectServer(tmp_path_factory.mktemp("chaos") / "server")
    renew_server(clock.variables)
    server.start()
    yield server
    server.stop()
    # The next one must not have that clock.
    stop_server()


@pytest.fixture
def disk(home: Home) -> Iterator[None]:
    """Give the home a small disk of its own, where that is allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", home.path], check=False)
    yield
    if mounted.returncode == 0:
        subprocess.run(["umount", "--lazy", home.path], check=True)


@pytest.fixture
def connected(server: PrefectServer, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all commands use that server and that clock."""
    for name, value in {"PREFECT_API_URL": server.url, **clock.variables}.items():
        monkeypatch.setenv(name, value)
