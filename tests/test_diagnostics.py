"""`diagnose` sees whether the Prefect API plans the runs of schedules, and names what is known not to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_dstack import diagnostics
from tests.prefect_server import PrefectServer


@flow
def nothing() -> None:
    """Do nothing."""


@pytest.fixture
def without_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Prefect API whose scheduler does not run."""
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "false")
    server = PrefectServer(tmp_path)
    server.start()
    with temporary_settings({PREFECT_API_URL: server.url}):
        yield
    server.stop()


@pytest.mark.integration
@pytest.mark.usefixtures("without_scheduler")
def test_a_scheduler_that_plans_nothing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment: Any = nothing.to_deployment("hourly", cron="0 * * * *")
    deployment.apply()

    assert "for long enough to tell" in diagnostics._scheduler().detail
    monkeypatch.setattr(diagnostics, "SCHEDULER_DELAY", timedelta(0))
    found = diagnostics._scheduler()

    assert found.level == "problem"
    assert found.detail == "has planned no run for any of 1 deployment with an active schedule"
    assert found.resolution.startswith("read the server's log")


@pytest.mark.parametrize("version", ["3.8.8", "3.0.0", "3.8.9rc1"])
def test_versions_of_a_server_known_to_fail_are_named(version: str) -> None:
    assert diagnostics._scheduler_remedy(version).startswith(f"the server is Prefect {version}, which plans")


@pytest.mark.parametrize("version", ["3.9.1", "3.10.0", "4.0.0", "unknown"])
def test_versions_of_a_server_that_work_are_not(version: str) -> None:
    assert diagnostics._scheduler_remedy(version).startswith("read the server's log")
