"""`ps NAME` and `top`: how a service is, what it bears, and what to do where it is not well."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.resident.test_hung_replicas import KEYS

pytestmark = pytest.mark.integration


@pytest.fixture
def url(
    cli: CommandLine, write: Callable[..., Path], name: str, prefect_server: PrefectServer
) -> Iterator[str]:
    """The URL of a service that can be told to hang, and whose replicas are then not replaced."""
    keys = {key: value for key, value in KEYS.items() if key != "restart_after"}
    endpoint = cli.ok("apply", "-f", write(**keys), "-y", "--json").json["endpoint"]["url"]
    yield endpoint
    cli.ok("stop", name, "-y")


def test_one_service_is_shown_closely_and_says_what_to_do(cli: CommandLine, name: str, url: str) -> None:
    for _ in range(4):
        get(url)
    (seen,) = cli.ok("ps", name, "--json").json
    figures = [replica["figures"] for replica in seen["replicas"]]
    assert sum(it["requests"] for it in figures) >= 4
    assert [it["failed"] for it in figures] == [0, 0]
    assert all(replica["started_at"] and replica["check"] for replica in seen["replicas"])
    assert (seen["problems"], seen["resolutions"]) == ([], [])

    with urllib.request.urlopen(f"{url}/hang", timeout=10) as answer:
        hung = answer.read().decode().partition('"replica": "')[2].rpartition("/")[2].strip('"}')

    def shown() -> str:
        text = cli.ok("ps", name).out
        return text if "gets no requests" in text else ""

    text = wait_until(shown, 60, "it is noticed")
    number = hung.rpartition("-")[2]
    tries = [line.strip() for line in text.splitlines() if line.startswith("  try ")]
    assert [line.removeprefix("try").strip() for line in tries] == [
        f"prefect-dstack logs {name} --replica {number} shows what {hung} does",
        "restart_after in the file has such replicas replaced",
    ]
    heads = next(line for line in text.splitlines() if line.startswith("REPLICA"))
    assert {"AGE", "RESTARTS", "REQUESTS", "P95", "MACHINE", "LAST CHECK"} <= {*heads.split("  ")} | {
        head.strip() for head in heads.split("  ")
    }


def test_top_shows_what_services_bear(
    cli: CommandLine, terminal: Callable[..., Terminal], name: str, url: str
) -> None:
    with Asking(url, "replica"):
        (seen,) = cli.ok("top", name, "--json", "--interval", "2").json
        once = cli.ok("top", name, "--once").out.splitlines()
        live = terminal("top", name, "--interval", "0.5", columns=120)
        live.expect("REQ/S")
        live.expect(f"{name} ")
        live.expect("2/2")
        live.press_ctrl_c()
        assert live.end() == 130

    assert (seen["wanted"], seen["serving"], seen["error_rate"]) == (2, 2, 0)
    assert seen["rate"] > 0
    assert seen["first_byte"] is not None
    assert once[0].split() == [
        "SERVICE",
        "REPLICAS",
        "REQ/S",
        "ERR/S",
        "MEAN",
        "P95",
        "OPEN",
        "WAITING",
        "PROBLEMS",
    ]
    assert once[1].split()[:2] == [name, "2/2"]
    assert cli("top", "nobody", "--once").code == 2
