"""What `docs/how-to/observe.md` tells its readers to type is typed, and its tables name what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dstack.cli.top import HEADS
from prefect_dstack.hosts.ports import free_port
from tests.command_line import CommandLine
from tests.flows.conftest import forget
from tests.flows.test_documented import BIN, DOCS, blocks
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("home", "prefect_server")]

PAGE = DOCS / "how-to" / "observe.md"
METRIC = re.compile(r"prefect_dstack_\w+")


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Types one of the commands of the page, found by a part of it."""
    lines = [
        line for block in blocks(PAGE, "console") for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    ]
    port = str(free_port())
    directory = tmp_path / "shop"
    directory.mkdir()

    def type_it(part: str) -> subprocess.CompletedProcess[str]:
        (line,) = [line for line in lines if part in line]
        return subprocess.run(
            ["bash", "-c", line.replace("9480", port)],
            cwd=directory,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    (directory / "app.py").write_text(blocks(DOCS / "tutorial.md", "python")[0])
    (directory / "shop.dstack.yml").write_text(blocks(PAGE, "yaml")[0])
    yield type_it
    CommandLine(directory)("controller", "stop")
    forget("shop")


def test_the_page(
    typed: Callable[[str], subprocess.CompletedProcess[str]], cli: CommandLine, tmp_path: Path
) -> None:
    unattended = {"PREFECT_DSTACK_START_CONTROLLER": "false"}
    cli.ok("apply", tmp_path / "shop", "-y", environment=unattended)

    assert "shop@1  serving  2/2 replicas" in typed("ps shop").stdout
    assert typed("top").stdout.split()[: len(HEADS)] == HEADS
    assert typed("controller start").returncode == 0

    def published() -> str:
        text = typed("curl").stdout
        return text if "prefect_dstack_replica_up{" in text else ""

    text = wait_until(published, 60, "metrics are published")
    assert set(METRIC.findall(PAGE.read_text())) == set(METRIC.findall(text))


def test_the_access_log(
    typed: Callable[[str], subprocess.CompletedProcess[str]], cli: CommandLine, tmp_path: Path
) -> None:
    unattended = {"PREFECT_DSTACK_START_CONTROLLER": "false"}
    file = tmp_path / "shop" / "shop.dstack.yml"
    (key,) = [block for block in blocks(PAGE, "yaml") if block.startswith("access_log")]
    file.write_text(file.read_text() + key)
    cli.ok("apply", tmp_path / "shop", "-y", environment=unattended)

    # The deployment has asked its endpoint.
    printed = wait_until(lambda: typed("--requests").stdout, 30, "a request is written")
    (shown,) = blocks(PAGE, "json")
    assert list(json.loads(printed)) == list(json.loads(shown))
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(json.loads(printed)) <= explained


def test_the_columns_of_top_are_explained(prefect_server: PrefectServer) -> None:
    text = PAGE.read_text()

    assert [head for head in HEADS[2:-1] if f"`{head}`" not in text] == []
