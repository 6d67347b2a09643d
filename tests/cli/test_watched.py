"""`ps` and `doctor` say when services need a controller, and none watches."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.command_line import CommandLine
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

UNWATCHED = "no controller is watching"
SCALING = {"metric": "concurrency", "target": 8}


def shown(cli: CommandLine, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = cli.ok("ps", "--json").json
    return next(service for service in found if service["name"] == name)


def test_a_service_that_scales_says_that_nobody_watches(
    cli: CommandLine, write: Callable[..., Path], name: str, prefect_server: PrefectServer
) -> None:
    unattended = {"PREFECT_DSTACK_START_CONTROLLER": "false"}
    cli.ok("apply", "-f", write(replicas="1..2", scaling=SCALING), "-y", environment=unattended)

    wait_until(lambda: UNWATCHED in cli.ok("ps").out, 30, "nobody watches")
    (line,) = [line for line in cli.ok("ps", name).out.splitlines() if UNWATCHED in line]
    assert line == f"{UNWATCHED}, and {name} needs one: prefect-dstack controller start"
    assert (shown(cli, name)["needs_controller"], shown(cli, name)["watched"]) == (True, False)
    found = cli("doctor").out
    assert f"{UNWATCHED}; {name} needs one" in found
    assert "start it: prefect-dstack controller start" in found

    cli.ok("controller", "start")
    wait_until(lambda: shown(cli, name)["watched"], 60, "one watches")
    assert UNWATCHED not in cli.ok("ps", name).out
    cli.ok("stop", name, "-y")
    cli.ok("controller", "stop")


def test_a_service_that_needs_none_is_silent_about_it(
    cli: CommandLine, write: Callable[..., Path], name: str, prefect_server: PrefectServer
) -> None:
    cli.ok("apply", "-f", write(), "-y")

    assert UNWATCHED not in cli.ok("ps", name).out
    assert not shown(cli, name)["needs_controller"]

    cli.ok("scale", name, "0")
    wait_until(lambda: UNWATCHED in cli.ok("ps", name).out, 30, "it would have to be woken")
    cli.ok("stop", name, "-y")


def test_a_controller_that_cannot_start_says_why_and_is_not_left_trying(
    cli: CommandLine, prefect_server: PrefectServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = cli("controller", "start", environment={"PREFECT_DSTACK_METRICS_PORT": str(port)})

    assert outcome.code == 1
    assert outcome.err.strip() == (
        f"error: the controller could not start: metrics cannot be published on 127.0.0.1:{port}: "
        "Address already in use; choose another metrics_port"
    )
    assert cli("controller", "status").code == 1


def test_a_controller_whose_supervisor_was_killed_is_called_lost(
    cli: CommandLine, prefect_server: PrefectServer
) -> None:
    cli.ok("controller", "start")
    controller = psutil.Process(cli.ok("controller", "status", "--json").json["pid"])
    supervisor = controller.parent()
    assert supervisor is not None
    supervisor.kill()
    _, alive = psutil.wait_procs([supervisor, controller], 30)
    assert not alive, "the controller does not outlive it"

    outcome = cli("controller", "status")

    assert outcome.code == 1
    assert outcome.out.splitlines()[:2] == [
        "on this machine: lost",
        "its supervisor was killed, so it is not started again: prefect-dstack controller start",
    ]
    assert cli.ok("controller", "start").out.startswith("started; ")
    cli.ok("controller", "stop")
