"""`apply`, `ps`, `logs`, `stop`, `gateway`, `server`: what they print, and what they leave running."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


def test_the_life_of_a_service(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    file = write(commands=['echo "token ${#TOKEN}"', *hello("x")["commands"]], env=["TOKEN"], replicas=2)
    url = f"http://127.0.0.1:{home.port}"

    applied = cli.ok("apply", "-f", file, "-y", "--json", environment={"TOKEN": "12345"})

    assert applied.json == {
        "service": name,
        "revision": 1,
        "endpoint": {
            "url": url,
            "openai_base_url": None,
            "gateway_openai_base_url": None,
            "model": None,
        },
        "replicas": [f"{name}-1-0", f"{name}-1-1"],
        "changed": True,
        "superseded": False,
        "waiting": None,
    }
    assert f"{name}@1: serves at {url}" in applied.err.splitlines()
    assert "\x1b" not in applied.err
    assert get(url)["revision"] == "1"  # the command has ended, the service has not

    unchanged = cli.ok("apply", "-f", file, "-y", environment={"TOKEN": "12345"})
    assert unchanged.out == f"{name}@1 is unchanged (--force replaces it), and serves at {url}\n"

    listed = {service["name"]: service for service in cli.ok("ps", "--json").json}[name]
    assert {key: listed[key] for key in ("revision", "state", "wanted", "serving", "url", "problems")} == {
        "revision": 1,
        "state": "serving",
        "wanted": 2,
        "serving": 2,
        "url": url,
        "problems": [],
    }
    assert [(it["name"], it["state"], it["restarts"], it["routed"]) for it in listed["replicas"]] == [
        (f"{name}-1-{number}", "running", 0, True) for number in range(2)
    ]

    table = cli.ok("ps").out.splitlines()
    (row,) = [line.split() for line in table if line.startswith(name)]
    assert table[0].split() == ["SERVICE", "REVISION", "STATE", "REPLICAS", "ENDPOINT", "PROBLEMS"]
    assert row == [name, "1", "serving", "2/2", url]

    lines = cli.ok("logs", name).out.splitlines()
    assert {f"{name}-1-0: token 5", f"{name}-1-1: token 5"} <= set(lines)
    one = cli.ok("logs", name, "--replica", "1", "--tail", "1").out.splitlines()
    assert one == cli.ok("logs", name, "--replica", "1").out.splitlines()[-1:]

    stopped = cli.ok("stop", name, "-y")
    assert stopped.out == f"{name} is stopped\n"
    assert home.leftovers() == []
    assert name not in cli.ok("ps").out
    assert name in cli.ok("ps", "--all").out


def test_logs_are_followed_until_the_service_stops(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    url = cli.ok("apply", "-f", write(), "-y", "--json").json["endpoint"]["url"]
    with cli.start("logs", name, "-f") as following:
        assert following.stdout
        assert following.stdout.readline().startswith("serving on")

        get(f"{url}/while-it-is-followed")

        assert any("GET /while-it-is-followed" in line for line in following.stdout)
        cli.ok("stop", name, "-y")
        assert following.stdout.read().endswith("stopping\n")
        assert following.wait(20) == 0


def test_a_failed_deployment_says_why_and_what_the_replica_wrote_last(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    file = write(commands=["echo reading model.bin", "exit 7"])

    outcome = cli("apply", "-f", file, "-y", "--json")

    assert (outcome.code, outcome.out) == (2, "")
    reason = f"{name}-1-0: it exited with code 7 before it was ready"
    assert outcome.err.splitlines()[-2:] == [
        f"error: {name}@1 failed: {reason}; nothing of it is left",
        "    reading model.bin",
    ]
    assert outcome.err.count("exited with code 7") == 1, "it is told once"
    assert "Traceback" not in outcome.err
    assert home.leftovers() == []
    assert name not in cli.ok("ps").out, "a failure is reported once"
    (listed,) = [it for it in cli.ok("ps", "-a", "--json").json if it["name"] == name]
    assert listed["state"] == "failed"
    assert "exited with code 7" in listed["problems"][0]
    # It may have been started again before its end was seen.
    assert set(cli.ok("logs", name).out.splitlines()) == {"reading model.bin"}
    assert set(cli.ok("logs", name, "--revision", "1").out.splitlines()) == {"reading model.bin"}


def test_a_stopped_service_is_deleted_with_all_that_is_known_of_it(
    cli: CommandLine, write: Callable[..., Path], name: str, prefect_server: PrefectServer
) -> None:
    cli.ok("apply", "-f", write(), "-y")

    refused = cli("delete", name, "-y")
    assert (refused.code, refused.err.splitlines()[-1]) == (
        2,
        f"error: {name}: serves, or waits for approval; stop it first: prefect-dstack stop {name}",
    )
    cli.ok("stop", name, "-y")
    assert name not in cli.ok("ps").out
    cli.ok("delete", name, "-y")

    assert name not in cli.ok("ps", "-a").out
    limits = prefect_server.ask("/v2/concurrency_limits/filter")
    assert f"prefect-dstack-service-{name}" not in {limit["name"] for limit in limits}


def test_a_scaled_service_keeps_its_number_until_it_is_released(
    cli: CommandLine, write: Callable[..., Path], name: str, prefect_server: PrefectServer
) -> None:
    cli.ok("apply", "-f", write(), "-y")

    refused = cli("scale", name, "-1")
    assert (refused.code, refused.err) == (
        2,
        "error: the number of replicas must be from 0 to 1000, not -1\n",
    )
    release = f"prefect-dstack scale {name} --release"
    scaled = cli.ok("scale", name, "3").out
    assert scaled == f"{name}@1 has 3 replicas, pinned: {release} lets its file decide again\n"
    cli.ok("apply", "-f", write(), "-y")
    (listed,) = [it for it in cli.ok("ps", "--json").json if it["name"] == name]
    assert (listed["wanted"], listed["serving"], listed["revision"], listed["pinned"]) == (3, 3, 1, True)
    pinned = f"  pinned    to 3, whatever the file says; {release} lets it decide again\n"
    assert pinned in cli.ok("ps", name).out
    released = cli.ok("scale", name, "--release").out
    assert released == f"{name}@1 has 1 replica; its file, or its load, decides again\n"
    assert "pinned" not in cli.ok("ps", name).out
    assert [it["number"] for it in cli.ok("history", name, "--json").json] == [1]
    history = [line.partition(" UTC  ")[2] for line in cli.ok("history", name).out.splitlines()]
    assert history[0].startswith("configuration  3 → 1: released by ")
    assert history[1].endswith("  1 → 3, pinned")
    cli.ok("stop", name, "-y")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["rollback", "hello", "2", "--to", "1"], "give the revision once: as an argument, or with --to"),
        (["scale", "hello", "2", "--release"], "either a number or --release"),
        (["scale", "hello"], "give the number of replicas, or --release"),
    ],
)
def test_what_is_said_twice_or_not_at_all_is_refused(
    cli: CommandLine, command: list[str], error: str
) -> None:
    refused = cli(*command)
    assert (refused.code, refused.err) == (2, f"error: {command[0]}: {error}\n")


@pytest.mark.parametrize(
    "command", [["stop", "nobody", "-y"], ["logs", "nobody"], ["gateway", "delete", "no", "-y"]]
)
def test_what_does_not_exist_is_the_users_mistake(
    cli: CommandLine, prefect_server: PrefectServer, command: list[str]
) -> None:
    outcome = cli(*command)

    assert (outcome.code, outcome.out) == (2, "")
    assert "there is no such" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_gateways_are_created_used_listed_and_deleted(
    cli: CommandLine,
    write: Callable[..., Path],
    name: str,
    home: Home,
    prefect_server: PrefectServer,
    tmp_path: Path,
) -> None:
    gateway = f"g{name}"
    file = tmp_path / "gateway.dstack.yml"
    port = home.port + 1
    file.write_text(
        f"type: gateway\nname: {gateway}\nbackend: local\nport: {port}\n"
        "domain: models.test\ncertificate: null\n"
    )

    assert cli.ok("gateway", "create", "-f", file, "-y").out == f"gateway {gateway} is ready\n"
    applied = cli.ok("apply", "-f", write(gateway=gateway), "-y", "--json").json
    assert applied["endpoint"]["url"] == f"http://{name}.models.test:{port}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": f"{name}.models.test"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["revision"] == "1"
    listing = cli.ok("gateway", "list").out
    assert [gateway, "local", "127.0.0.1", "models.test", "running", name] == next(
        line.split() for line in listing.splitlines() if line.startswith(gateway)
    )

    refusal = cli("gateway", "delete", gateway, "-y")
    assert refusal.code == 2
    assert f"{gateway}: serves {name}; stop" in refusal.err

    cli.ok("stop", name, "-y")
    assert cli.ok("gateway", "delete", gateway, "-y").out == f"gateway {gateway} is deleted\n"
    assert home.leftovers() == []


def test_without_an_api_a_server_is_started_once_and_services_outlive_it(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(home.path / ".prefect"))

    url = cli.ok("apply", "-f", write(), "-y", "--json", timeout=300).json["endpoint"]["url"]
    api = cli.ok("server", "url").out.strip()
    again = cli.ok("server", "start")

    assert again.out.strip() == api
    assert "starting" not in again.err
    assert [it["name"] for it in cli.ok("ps", "--json").json] == [name]

    assert cli.ok("server", "stop").out == "stopped\n"
    assert get(url)["revision"] == "1"
    assert cli("server", "url").code == 2

    # It is started again by who needs it, and knows what it knew.
    cli.ok("stop", name, "-y", timeout=300)
    cli.ok("server", "stop")
    wait_until(lambda: not home.leftovers(), 10, "nothing is left")


def test_an_api_that_does_not_answer_is_named(cli: CommandLine) -> None:
    outcome = cli("ps", environment={"PREFECT_API_URL": "http://127.0.0.1:9/api"})

    assert (outcome.code, outcome.out) == (1, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith(
        "error: the Prefect API at http://127.0.0.1:9/api does not answer; start it, or unset PREFECT_API_URL"
    )


def test_debug_at_the_end_of_the_line_shows_where_an_error_is_from(cli: CommandLine) -> None:
    outcome = cli("ps", "--debug", environment={"PREFECT_API_URL": "http://127.0.0.1:9/api"})

    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: the Prefect API at http://127.0.0.1:9/api")
