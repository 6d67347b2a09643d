"""A service whose replicas run different commands, through the command line on this machine."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import EXAMPLES, get
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

PAGE = EXAMPLES.parent / "docs" / "how-to" / "replica-groups.md"


def group(name: str, replicas: int, greeting: str = "") -> dict[str, Any]:
    """A group whose replicas answer with its name, or another greeting, as those of the page do."""
    commands = [f"export GREETING={greeting or name}", "exec python3 app.py"]
    return {"name": name, "replicas": replicas, "commands": commands}


PATIENCE = 400
"""Seconds for a command, each of which starts a replica or two where other tests keep the machine busy."""


class Written:
    """The file that the page shows, with another name and perhaps other groups."""

    def __init__(self, directory: Path, name: str) -> None:
        shutil.copy(EXAMPLES / "hello" / "app.py", directory)
        self.text, *_ = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        self.path = directory / f"{name}.dstack.yml"
        self.path.write_text(self.text.replace("name: mixed", f"name: {name}"))
        self.keys = yaml.safe_load(self.path.read_text())

    def with_groups(self, *groups: dict[str, Any]) -> Path:
        self.path.write_text(yaml.safe_dump({**self.keys, "groups": list(groups)}))
        return self.path


def replicas(cli: CommandLine, name: str) -> dict[str, str]:
    """The groups of the replicas that get requests."""
    (service,) = cli.ok("ps", name, "--json", timeout=PATIENCE).json
    assert service["problems"] == []
    return {it["name"]: it["group"] for it in service["replicas"] if it["routed"]}


@pytest.mark.timeout(2400)
def test_the_life_of_a_service_with_groups(
    cli: CommandLine, tmp_path: Path, name: str, home: Home, prefect_server: PrefectServer
) -> None:
    directory = tmp_path / "service"
    directory.mkdir()
    written = Written(directory, name)

    offered = cli.ok("offer", written.path, "--json", timeout=PATIENCE).json
    assert {offer["group"] for offer in offered} == {"fast", "small"}
    applied = cli.ok("apply", "-f", written.path, "-y", "--json", timeout=PATIENCE)

    assert f"{name}@1: deploying replicas in groups: fast 1, small 2" in applied.err.splitlines()
    url = applied.json["endpoint"]["url"]
    assert replicas(cli, name) == {f"{name}-1-0": "fast", f"{name}-1-1": "small", f"{name}-1-3": "small"}
    fast, small = written.keys["groups"]
    with Asking(url, key="greeting") as asking:
        # Other numbers of replicas keep those that are there.
        file = written.with_groups({**fast, "replicas": 2}, {**small, "replicas": 1})
        assert cli.ok("apply", "-f", file, "-y", "--json", timeout=PATIENCE).json["revision"] == 1
        assert replicas(cli, name) == {f"{name}-1-0": "fast", f"{name}-1-1": "small", f"{name}-1-2": "fast"}

        file = written.with_groups({**fast, "replicas": 2}, group("small", 1, "more"), group("late", 1))
        assert cli.ok("apply", "-f", file, "-y", "--json", timeout=PATIENCE).json["revision"] == 2
        assert replicas(cli, name) == {
            f"{name}-2-0": "fast",
            f"{name}-2-1": "small",
            f"{name}-2-2": "late",
            f"{name}-2-3": "fast",
        }
    assert asking.failures == []
    assert set(asking.answers) >= {"fast", "small", "more", "late"}
    assert {get(url)["greeting"] for _ in range(30)} == {"fast", "more", "late"}

    refused = cli("scale", name, "3", timeout=PATIENCE)
    assert refused.code == 2
    assert "name one of fast, small, late: --group fast" in refused.err
    cli.ok("scale", name, "2", "--group", "small", timeout=PATIENCE)
    assert Counter(replicas(cli, name).values()) == {"fast": 2, "small": 2, "late": 1}
    assert cli.ok("inspect", name, "--json", timeout=PATIENCE).json["desired"]["groups"] == {
        "fast": 2,
        "small": 2,
        "late": 1,
    }

    table = cli.ok("ps", name, timeout=PATIENCE).out
    assert "GROUP" in table
    lines = cli.ok("logs", name, "--tail", "1", timeout=PATIENCE).out.splitlines()
    assert {line.partition(": ")[0] for line in lines} >= {f"{name}-2-0 (fast)", f"{name}-2-1 (small)"}
    assert name not in cli.ok("reconcile", "--dry-run", timeout=PATIENCE).out

    cli.ok("stop", name, "-y", timeout=PATIENCE)
    assert home.leftovers() == []
