"""A backend of another package works from `apply` to `stop`, and nothing of ours knows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.flows.conftest import get
from tests.flows.seen import events_of
from tests.flows.test_publication import page
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

PACKAGE = Path(__file__).parent / "tinycloud"
OURS = Path(__file__).parents[2] / "prefect_dstack"


@pytest.fixture
def cloud(home: Home, monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer) -> Path:
    """The package is installed, and its cloud configured."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    directory = home.state / "tinycloud"
    directory.mkdir(parents=True)
    return directory


def machines(cloud: Path) -> list[str]:
    """The machines that the cloud has given, by the replicas that they were made for."""
    return sorted(it.name for it in cloud.glob("*/") if it.name != "replicas")


def test_runs_a_service_from_apply_to_stop(
    cli: CommandLine, write: Callable[..., Path], cloud: Path, name: str
) -> None:
    applied = cli.ok("apply", "-f", write(replicas=2), "-y", "--json").json
    assert get(applied["endpoint"]["url"])
    (service,) = cli.ok("ps", "--json").json
    assert {replica["instance"] for replica in service["replicas"]} == {
        f"tiny-{name}-1-0",
        f"tiny-{name}-1-1",
    }
    assert [offer["backend"] for offer in cli.ok("offer", "-f", write(), "--json").json] == ["tinycloud"]
    cli.ok("apply", "-f", write(replicas=2, env={"GREETING": "hi"}, rollout={"max_surge": 1}), "-y")
    assert sorted(it.name for it in cloud.glob("*/") if it.name != "replicas") == [
        f"{name}-2-0",
        f"{name}-2-1",
    ]
    cli.ok("stop", name, "-y")
    assert machines(cloud) == []


def test_what_its_machines_cost_is_shown(
    cli: CommandLine, write: Callable[..., Path], cloud: Path, name: str, prefect_server: PrefectServer
) -> None:
    cli.ok("apply", "-f", write(replicas=2, budget=0.0015), "-y")
    try:
        (service,) = cli.ok("ps", name, "--json").json
        assert (service["price"], [it["price"] for it in service["replicas"]]) == (0.002, [0.001, 0.001])
        assert service["state"] == "serving", "what it costs does not make it worse"
        assert service["problems"] == ["costs $0.002 an hour, and its budget is $0.0015"]
        assert cli.ok("inspect", name, "--json").json["price"] == 0.002
        heads, row, *_, total = cli.ok("ps").out.splitlines()
        assert heads.split()[4] == "PRICE/H"
        assert row.split()[4] == "$0.002"
        assert total == "all services together cost $0.002 an hour"
        closely = cli.ok("ps", name).out
        assert "  price     $0.002 an hour\n" in closely
        assert closely.count(" $0.001 ") == 2
        (event,) = events_of(prefect_server, "prefect-dstack.service.over-budget", name)
        assert event["payload"]["price"] == 0.002
        shown = page(prefect_server, name)["data"]
        assert "| $0.001 |" in shown
        assert "**It costs $0.002 an hour, and its budget is $0.0015.**" in shown

        cli.ok("scale", name, "1")
        (service,) = cli.ok("ps", name, "--json").json
        assert (service["price"], service["problems"]) == (0.001, [])
        assert len(events_of(prefect_server, "prefect-dstack.service.over-budget", name)) == 1
    finally:
        cli("stop", name, "-y")


def test_its_refusal_is_the_answer(cli: CommandLine, write: Callable[..., Path], cloud: Path) -> None:
    refused = cli("apply", "-f", write(spot_policy="spot"), "-y")
    assert refused.code == 2
    assert "tinycloud has no spot machines" in refused.err


def test_its_capacity_counts(cli: CommandLine, write: Callable[..., Path], cloud: Path) -> None:
    refused = cli("apply", "-f", write(replicas=4), "-y")
    assert refused.code != 0
    assert "all 3 slots are taken" in refused.err
    assert machines(cloud) == []


def test_nothing_of_ours_names_it() -> None:
    assert not [path for path in OURS.rglob("*.py") if "tinycloud" in path.read_text()]
