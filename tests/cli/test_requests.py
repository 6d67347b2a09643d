"""`logs NAME --requests`: the access log of a service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine
from tests.flows.conftest import forget, get
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

Write = Callable[..., Path]


def test_requests_are_listed_and_followed(
    cli: CommandLine, write: Write, name: str, prefect_server: PrefectServer
) -> None:
    cli.ok("apply", "-f", write(replicas=2), "-y")
    try:
        nothing = cli("logs", name, "--requests")
        assert nothing.code == 2
        assert (
            nothing.err
            == f"error: {name}: has no access log; add 'access_log: true' to its file and apply it\n"
        )

        changed = cli.ok("apply", "-f", write(replicas=2, access_log=True), "-y", "--json").json
        url = changed["endpoint"]["url"]
        for number in range(6):
            get(f"{url}/orders?number={number}")

        def requests(*options: str) -> list[dict[str, Any]]:
            return [
                json.loads(line) for line in cli.ok("logs", name, "--requests", *options).out.splitlines()
            ]

        def all_six() -> list[dict[str, Any]] | None:
            seen = requests()
            return seen if sum(it["path"] == "/orders" for it in seen) == 6 else None

        # The deployment has asked too. The second revision goes on with the replicas of the first.
        found = wait_until(all_six, 30, "all are written")
        assert {(it["service"], it["status"], it["revision"]) for it in found} == {(name, 200, "1")}
        assert requests("--tail", "2") == found[-2:]
        assert requests("--replica", "1") == [it for it in found if it["replica"] == f"{name}-1-1"]
        assert requests("--revision", "1") == found
        assert requests("--revision", "2") == []
        assert requests("--since", "10m") == found

        with cli.start("logs", name, "--requests", "-f", "--tail", "1") as following:
            assert following.stdout is not None
            assert json.loads(following.stdout.readline()) == found[-1]
            get(f"{url}/orders?number=7")
            assert json.loads(following.stdout.readline())["status"] == 200
            following.kill()
    finally:
        forget(name)


def test_they_are_asked_for_one_service(cli: CommandLine) -> None:
    outcome = cli("logs", "one", "two", "--requests")
    assert outcome.code == 2
    assert (
        outcome.err
        == "error: logs: --replica, --revision and --requests are for one service, and several are named\n"
    )
