"""A flow of a caller, in a script elsewhere and with no Prefect API configured, uses the local server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.home import Home

pytestmark = pytest.mark.integration

SCRIPT = """
from prefect import flow
from prefect.settings import get_current_settings
{imports}


@flow
def mine() -> None:
    reconcile_services(dry_run=True)
    print(get_current_settings().api.url)


if __name__ == "__main__":
    {first}
    mine()
"""


@pytest.fixture
def no_api(cli: CommandLine, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No API is configured, and none runs."""
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(home.path / ".prefect"))
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(home.port))
    # A busy machine takes longer than the 20 s that Prefect gives a temporary server.
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    yield
    cli.ok("server", "stop")


def run(directory: Path, imports: str, first: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run a script as a file."""
    (directory / "mine.py").write_text(SCRIPT.format(imports=imports, first=first))
    return subprocess.run(
        [sys.executable, "mine.py"], cwd=directory, capture_output=True, text=True, timeout=200, check=True
    )


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("no_api")
def test_uses_the_local_server_instead_of_a_temporary_one(home: Home, tmp_path: Path) -> None:
    local = f"http://127.0.0.1:{home.port}/api"

    first = run(tmp_path, "from prefect_dstack import connect, reconcile_services", "connect()")
    second = run(tmp_path, "from prefect_dstack import reconcile_services")

    assert first.stdout.strip() == second.stdout.strip() == local
    assert "starting a Prefect server on this machine, once" in first.stderr
    assert "starting a Prefect server" not in second.stderr
    for done in (first, second):
        assert "temporary" not in done.stderr


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("no_api")
def test_is_told_how_to_get_rid_of_a_temporary_server(tmp_path: Path) -> None:
    done = run(tmp_path, "from prefect_dstack import reconcile_services")

    assert "call prefect_dstack.connect()" in done.stderr
