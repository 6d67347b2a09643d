"""An `apply` that is interrupted: by Ctrl-C, a supervisor, a terminal that is closed, or for good."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.flows.conftest import HELLO, get
from tests.flows.seen import runs_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SLOW_START = f"sleep 3; {HELLO}"


@pytest.fixture
def interrupt(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home, prefect_server: PrefectServer
) -> Callable[[signal.Signals], str]:
    """Deploys, sends a signal to the next `apply` once its replica is there, and gives what it wrote."""

    def interrupt(number: signal.Signals) -> str:
        cli.ok("apply", "-f", write(), "-y")
        with cli.start("apply", "-f", write(commands=[SLOW_START]), "-y") as applying:
            wait_until((home.state / "replicas" / f"{name}-2-0").is_dir, 60, "the replica is there")
            applying.send_signal(number)
            said = applying.communicate(timeout=60)[1]
        assert applying.returncode != 0
        assert "Traceback" not in said
        return str(said)

    return interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_is_undone_before_it_ends(
    interrupt: Callable[[signal.Signals], str],
    cli: CommandLine,
    name: str,
    home: Home,
    prefect_server: PrefectServer,
    number: signal.Signals,
) -> None:
    said = interrupt(number)

    if number != signal.SIGHUP:  # then nobody reads it
        assert said.splitlines()[-1] == "error: interrupted; prefect-dstack ps shows what serves"
    assert [place.name for place in home.state.glob("replicas/*/")] == [f"{name}-1-0"]
    (service,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
    assert (service["state"], service["revision"], service["problems"]) == ("serving", 1, [])
    assert get(service["url"])["revision"] == "1"
    failed = cli.ok("history", name, "--json").json[-1]
    assert (failed["outcome"], failed["reason"]) == ("failed", "it was interrupted")
    assert [run["state"]["type"] for run in runs_of(prefect_server, "deploy", name)] == [
        "COMPLETED",
        "CRASHED",
    ]
    cli.ok("stop", name, "-y")


def test_killed_for_good_it_is_told_of_and_undone_by_the_next(
    interrupt: Callable[[signal.Signals], str],
    cli: CommandLine,
    write: Callable[..., Path],
    name: str,
    home: Home,
    prefect_server: PrefectServer,
) -> None:
    interrupt(signal.SIGKILL)

    (service,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
    assert (service["state"], service["revision"]) == ("serving", 1)
    assert service["problems"] == [
        f"{name}-2-0 is left of a deployment that ended before it was done",
        "prefect-dstack reconcile, or the next apply, undoes that deployment",
    ]
    assert cli.ok("apply", "-f", write(env={"GREETING": "new"}), "-y", "--json").json["revision"] == 3
    assert [place.name for place in home.state.glob("replicas/*/")] == [f"{name}-3-0"]
    (service,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
    assert service["problems"] == []
    runs = runs_of(prefect_server, "deploy", name)
    assert [run["state"]["type"] for run in runs] == ["COMPLETED", "CRASHED", "COMPLETED"]
    cli.ok("stop", name, "-y")
