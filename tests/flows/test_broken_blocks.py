"""A block that was saved with nonsense harms only what uses it, and is shown where one looks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.core import Block

from prefect_dstack.blocks import DstackGateway, DstackService, DstackSshFleet, DstackToken
from prefect_dstack.store import documents
from tests.command_line import CommandLine
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

SaveBlock = Callable[[Block], str]


@pytest.fixture
def save(prefect_server: PrefectServer, name: str) -> Iterator[SaveBlock]:
    """Saves blocks, which are deleted at the end; gives their name."""
    saved: list[tuple[type[Block], str]] = []

    def save(block: Block) -> str:
        block_name = f"{name}-broken-{len(saved)}"
        documents.save(block, block_name)
        saved.append((type(block), block_name))
        return block_name

    yield save
    for kind, block_name in saved:
        if block_name in documents.names(kind):
            documents.delete(kind, block_name)


def write(directory: Path, configuration: dict[str, Any]) -> Path:
    file = directory / "service.dstack.yml"
    file.write_text(json.dumps(configuration))
    return file


def deploys_and_is_shown(cli: CommandLine, directory: Path, name: str) -> None:
    """A service of this machine that has nothing to do with it."""
    applied = cli.ok("apply", "-f", write(directory, hello(name)), "-y", "--json").json
    assert get(applied["endpoint"]["url"])["greeting"]
    (service,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
    assert (service["state"], service["problems"]) == ("serving", [])
    assert cli.ok("gateway", "list").out.splitlines()[0].startswith("GATEWAY")
    assert "serving on" in cli.ok("logs", name).out
    cli.ok("scale", name, "2")
    cli.ok("stop", name, "-y")


def test_of_a_fleet(cli: CommandLine, home: Home, save: SaveBlock, name: str, tmp_path: Path) -> None:
    broken = save(DstackSshFleet(configuration={"type": "fleet", "nonsense": [1]}))

    deploys_and_is_shown(cli, tmp_path, name)
    (line,) = (line for line in cli.ok("fleet", "list").out.splitlines() if line.startswith(broken))
    assert "nonsense" in line
    assert "apply its file again, or delete the block" in line
    on_hosts = {**hello(f"{name}-b"), "image": "nginx", "fleets": [broken]}
    refused = cli("apply", "-f", write(tmp_path, on_hosts), "-y")
    assert refused.code == 2
    error = refused.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert f"fleet '{broken}' cannot be used" in error
    cli("reconcile")
    cli.ok("fleet", "delete", broken, "-y")
    assert broken not in cli.ok("fleet", "list").out
    save(DstackSshFleet(configuration={}))


@pytest.mark.parametrize(
    "fields",
    [
        {"configuration": {"type": "gateway", "nonsense": 1}},
        {"configuration": {"type": "gateway", "backend": "aws"}, "details": {"instance": "nonsense"}},
    ],
    ids=["configuration", "details"],
)
def test_of_a_gateway(
    cli: CommandLine, home: Home, save: SaveBlock, name: str, tmp_path: Path, fields: dict[str, Any]
) -> None:
    broken = save(DstackGateway(**fields))

    deploys_and_is_shown(cli, tmp_path, name)
    (line,) = (line for line in cli.ok("gateway", "list").out.splitlines() if line.startswith(broken))
    assert "its block cannot be used" in line
    refused = cli("apply", "-f", write(tmp_path, hello(f"{name}-b", gateway=broken)), "-y")
    assert refused.code == 2
    assert f"gateway '{broken}'" in refused.err.splitlines()[-1]


@pytest.mark.parametrize("record", [{"version": 999, "name": "x"}, {"nonsense": 1}, {}])
def test_of_a_service(
    cli: CommandLine, home: Home, save: SaveBlock, name: str, tmp_path: Path, record: dict[str, Any]
) -> None:
    broken = save(DstackService(record=record))

    deploys_and_is_shown(cli, tmp_path, name)
    (service,) = (it for it in cli.ok("ps", "--json").json if it["name"] == broken)
    assert service["state"] == "unknown"
    assert "its record cannot be read" in service["problems"][0]
    for command in (["stop", broken, "-y"], ["apply", "-f", write(tmp_path, hello(broken)), "-y"]):
        refused = cli(*command)
        assert refused.code in (1, 2)
        (error,) = (line for line in refused.err.splitlines() if line.startswith("error: "))
        assert f"{broken}: its record cannot be read" in error
        assert "Traceback" not in refused.err


def test_of_a_token(cli: CommandLine, home: Home, save: SaveBlock, name: str, tmp_path: Path) -> None:
    save(DstackToken(token={"nonsense": 1}))

    deploys_and_is_shown(cli, tmp_path, name)
    cli.ok("token", "list")
