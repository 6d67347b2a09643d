"""`--json` prints one document on standard output, for every command that prints something to work with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from prefect_dstack.cli.main import application
from tests.cli.terminal import Terminal
from tests.command_line import CommandLine
from tests.home import Home
from tests.prefect_server import PrefectServer

# What they print has a form of its own, or is for people only.
WITHOUT = {
    *("init", "logs", "attach", "ssh", "open", "call", "version", "schema", "controller run", "gateway ca"),
}
SECRET = "do-not-show-me"


def every_command() -> Iterator[tuple[str, Any]]:
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(application))]
    while waiting:
        name, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{name} {it}".strip(), one) for it, one in command.commands.items()]
        else:
            yield name, command


def test_every_command_has_it_or_a_reason() -> None:
    without = {name for name, it in every_command() if "--json" not in [o for p in it.params for o in p.opts]}
    assert without == WITHOUT


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_server")
class TestDocuments:
    def test_of_gateways_and_tokens(self, cli: CommandLine, home: Home, name: str, tmp_path: Path) -> None:
        file = tmp_path / "gateway.dstack.yml"
        written = {"type": "gateway", "name": name, "backend": "local", "port": home.port}
        file.write_text(yaml.safe_dump({**written, "domain": "models.test", "certificate": None}))

        ready = {"name": name, "missing_dns_records": []}
        assert cli.ok("gateway", "create", "-f", file, "-y", "--json").json == ready
        assert cli.ok("apply", file, "-y", "--json").json == ready
        token = cli.ok("token", "create", "--gateway", name, "--json").json
        revoked = cli.ok("token", "revoke", token["id"], "--json")
        assert revoked.json == {"id": token["id"], "revoked": True}
        assert token["token"] not in revoked.out + revoked.err
        assert cli.ok("gateway", "delete", name, "-y", "--json").json == {"name": name, "deleted": True}

    def test_of_fleets(self, cli: CommandLine, name: str) -> None:
        from prefect_dstack.blocks import DstackSshFleet

        # Nobody can use it, so no host is asked.
        DstackSshFleet(configuration={"type": "fleet", "name": name, "hosts": 1}).save(name)

        assert name in [it["name"] for it in cli.ok("fleet", "list", "--json").json]
        assert cli.ok("fleet", "delete", name, "-y", "--json").json == {"name": name, "deleted": True}

    def test_of_a_repair(self, cli: CommandLine) -> None:
        found = cli.ok("reconcile", "--dry-run", "--json")
        assert found.json == {"dry_run": True, "done": []}

    def test_of_the_controller(self, cli: CommandLine, home: Home) -> None:
        started = cli.ok("controller", "start", "--json").json
        assert started == {"started": True, "log": str(home.state / "controller" / "output.log")}
        assert cli.ok("controller", "start", "--json").json["started"] is False
        status = cli.ok("controller", "status", "--json").json
        assert (status["state"], status["pid"] > 0) == ("running", True)
        assert cli.ok("controller", "stop", "--json").json == {"stopped": True}
        assert cli.ok("controller", "stop", "--json").json == {"stopped": False}
        assert cli("controller", "status", "--json").code == 1

    def test_of_no_local_server(self, cli: CommandLine) -> None:
        assert cli.ok("server", "stop", "--json").json == {"stopped": False}

    def test_of_a_task_whose_log_is_beside_it(
        self, cli: CommandLine, name: str, tmp_path: Path, prefect_server: PrefectServer
    ) -> None:
        file = tmp_path / "task.dstack.yml"
        file.write_text(
            yaml.safe_dump({"type": "task", "name": name, "commands": ["echo counted", "exit 3"]})
        )

        ended = cli("apply", file, "-y", "--json")

        assert ended.code == 3
        shown = json.loads(ended.out)
        assert (shown["name"], shown["number"], shown["state"], shown["exit_code"]) == (name, 1, "failed", 3)
        assert "counted" in ended.err.splitlines()
        assert "counted" in cli.ok("logs", name, "--since", "1h").out.splitlines()
        assert cli.ok("logs", name, "--since", "2999-01-01").out == ""


@pytest.mark.integration
def test_lists_fit_narrow_terminals(
    terminal: Callable[..., Terminal],
    cli: CommandLine,
    home: Home,
    name: str,
    tmp_path: Path,
    prefect_server: PrefectServer,
) -> None:
    file = tmp_path / "gateway.dstack.yml"
    written = {"type": "gateway", "name": name, "backend": "local", "port": home.port}
    file.write_text(yaml.safe_dump({**written, "domain": "models.test", "certificate": None}))
    cli.ok("apply", file, "-y")
    cli.ok("token", "create", "--gateway", name, "--expires", "30d")

    for command in ("token", "gateway"):
        shown = terminal(command, "list", columns=60)
        assert shown.end() == 0
        # The line before them is redrawn while the API is looked for.
        assert name in shown.text
        assert all(len(line) <= 60 for line in shown.lines[1:]), shown.text
    cli.ok("gateway", "delete", name, "-y")
