"""What every test can use."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.command_line import CommandLine
from tests.home import Home
from tests.prefect_server import PrefectServer

pytest_plugins = ["tests.testbed.fixtures"]

# Read when Prefect is first imported: no test shall see, or change, what belongs to whoever runs it.
PREFECT_HOME = Path(tempfile.mkdtemp(prefix="prefect-dstack-tests-"))
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)
NOWHERE = "http://127.0.0.1:9/api"
os.environ |= {
    "PREFECT_HOME": str(PREFECT_HOME),
    "PREFECT_API_URL": NOWHERE,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}

# A shell ignores it for what it runs in the background, and all that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What fails fastest comes first.
ORDER = ("docker", "testbed", "integration", "llm", "packaging")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put fast tests first."""

    def slowness(item: pytest.Item) -> int:
        return max((ORDER.index(mark) + 1 for mark in ORDER if item.get_closest_marker(mark)), default=0)

    items.sort(key=slowness)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """A real Prefect server, the same for all tests, in this process and in those that they start."""
    from prefect.context import refresh_global_settings_context
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    server = PrefectServer(PREFECT_HOME / "server")
    server.start()
    os.environ["PREFECT_API_URL"] = server.url
    refresh_global_settings_context()
    yield server
    # What they still hold would be sent at the end of the process, for a minute, to nobody.
    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)
    os.environ["PREFECT_API_URL"] = NOWHERE
    refresh_global_settings_context()
    server.stop()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home directory of the test's own; a test that leaves anything behind fails."""
    home = Home(tmp_path / "home")
    home.path.mkdir()
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    yield home
    leftovers = home.leftovers()
    home.clear()
    assert not leftovers, "\n".join(["the test left behind:", *leftovers])


@pytest.fixture
def cli(home: Home, tmp_path: Path) -> CommandLine:
    """The installed `prefect-dstack`, in the test's own home."""
    return CommandLine(tmp_path)


@pytest.fixture
def name() -> str:
    """The name of a service that no other test has used."""
    return f"t{uuid4().hex[:10]}"
