"""What people do with a service that serves: each verb, on terminals wide and narrow, and in pipes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.terminal import COLOUR, Terminal
from tests.command_line import CommandLine
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

SECRET = "do-not-show-me"


@pytest.fixture
def file(tmp_path: Path, name: str) -> Path:
    """The file of a service in a directory of its own."""
    directory = tmp_path / "app"
    directory.mkdir()
    (directory / "model.txt").write_text("one")
    return directory / "serve.dstack.yml"


@pytest.fixture
def serve(
    cli: CommandLine, file: Path, name: str, home: Home, prefect_server: PrefectServer
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Deploys the service; it is stopped at the end."""

    def serve(**keys: object) -> dict[str, Any]:
        file.write_text(yaml.safe_dump(hello(name, **keys)))
        deployed: dict[str, Any] = cli.ok("apply", file, "-y", "--json").json
        return deployed

    yield serve
    cli("stop", name, "-y")


def test_a_revision_waits_for_approval(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, name: str
) -> None:
    serve()
    nothing = cli("approve", name, "-y")
    assert (nothing.code, nothing.err.count("\n")) == (2, 1)
    assert "no revision waits for approval" in nothing.err
    applied = serve(env={"GREETING": "two"}, rollout={"approval": True})
    assert (applied["revision"], applied["changed"], applied["waiting"]["revision"]) == (1, False, 2)
    private = applied["waiting"]["private_url"]
    assert get(private)["greeting"] == "two"
    shown = cli.ok("ps", name).out
    assert f"private   {private} on this machine" in shown
    assert f"{name}@2 waits: prefect-dstack approve {name}" in shown
    assert [it["waiting"] for it in cli.ok("history", name, "--json").json] == [False, True]
    assert cli.ok("inspect", name, "--json").json["approval"]["private_url"] == private

    approved = cli.ok("approve", name, "-y", "--reason", "faster")
    assert approved.out == f"{name}@2 serves at {applied['endpoint']['url']}\n"
    assert ": faster" in cli.ok("history", name).out
    serve(env={"GREETING": "three"}, rollout={"approval": True})
    assert cli.ok("reject", name, "-y").out == f"{name}: rejected; {name}@2 serves on\n"


@pytest.mark.parametrize("columns", [60, 140])
def test_apply_shows_what_it_would_change_before_it_asks(
    serve: Callable[..., dict[str, Any]],
    terminal: Callable[..., Terminal],
    cli: CommandLine,
    file: Path,
    name: str,
    columns: int,
) -> None:
    serve()
    (file.parent / "model.txt").write_text("two")
    (file.parent / "new.txt").write_text("new")
    file.write_text(yaml.safe_dump(hello(name, env={"COLOUR": "blue"})))

    shown = terminal("apply", file, columns=columns)
    shown.expect("[y/N]")
    shown.type("n")

    assert shown.end() == 2
    assert {"+env:", "+  COLOUR: blue", "~files: their content changed", "~model.txt", "+new.txt"} <= {
        line.strip() for line in shown.lines
    }
    assert "new replicas take the place of those of revision 1, which serve until then" in shown.text
    assert f"Deploy {name}? [y/N]" in shown.text
    assert "\x1b[32m" in shown.raw
    assert [it["number"] for it in cli.ok("history", name, "--json").json] == [1]


def test_apply_tells_settings_numbers_and_nothing_from_new_replicas(
    serve: Callable[..., dict[str, Any]], terminal: Callable[..., Terminal], file: Path, name: str
) -> None:
    serve()
    for keys, said in (
        ({}, f"Nothing would change. Deploy {name}? [y/N]"),
        ({"replicas": 2}, "from 1 to 2 replicas; that makes no new revision"),
        (
            {"cors": {"allow_origins": ["https://a.test"]}},
            "the replicas of revision 1 stay, with new settings",
        ),
    ):
        file.write_text(yaml.safe_dump(hello(name, **keys)))
        shown = terminal("apply", file)
        shown.expect("[y/N]")
        shown.type("")
        assert shown.end() == 2
        assert said in shown.text, keys
        assert "BACKEND" not in shown.text, "no machine is needed"


def test_ps_of_one_shows_its_replicas(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, terminal: Callable[..., Terminal], name: str
) -> None:
    serve()

    first, endpoint, *_ = cli.ok("ps", name).out.splitlines()
    assert first == f"{name}@1  serving  1/1 replicas"
    assert endpoint.startswith("  endpoint  http://127.0.0.1:")
    narrow = terminal("ps", name, columns=60)
    assert narrow.end() == 0
    assert f"{name}-1-0" in narrow.text
    assert all(len(line) <= 60 or " " not in line.strip() for line in narrow.lines if "on " not in line)
    assert "\x1b[32mserving" in narrow.raw
    plain = terminal("ps", name, environment={"NO_COLOR": "1"})
    assert plain.end() == 0
    assert not COLOUR.search(plain.raw)
    missing = cli("ps", "nobody")
    assert (missing.code, missing.out) == (2, "")
    assert "nobody: there is no such service" in missing.err


def test_ps_watches_until_ctrl_c(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, terminal: Callable[..., Terminal], name: str
) -> None:
    serve()
    shown = terminal("ps", name, "--watch")
    shown.expect(f"{name}@1  serving  1/1 replicas")

    cli.ok("scale", name, "2")
    shown.expect(f"{name}@1  serving  2/2 replicas")
    shown.press_ctrl_c()

    assert shown.end() == 128 + signal.SIGINT
    assert "error" not in shown.text
    assert "Traceback" not in shown.text


def test_restart_replaces_the_replicas_and_nothing_else(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, file: Path, name: str
) -> None:
    deployed = serve()
    (file.parent / "model.txt").write_text("not deployed")
    before = get(deployed["endpoint"]["url"])

    restarted = cli.ok("restart", name, "--json").json

    after = get(restarted["url"])
    assert (restarted["revision"], restarted["url"]) == (2, deployed["endpoint"]["url"])
    assert after["pid"] != before["pid"]
    revisions = cli.ok("history", name, "--json").json
    assert revisions[1]["changes"] == ""
    assert revisions[1]["bundle"] == revisions[0]["bundle"]


def test_what_does_not_serve_cannot_be_restarted(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, name: str
) -> None:
    serve()
    cli.ok("stop", name, "-y")

    outcome = cli("restart", name)

    assert (outcome.code, outcome.out) == (2, "")
    assert "does not serve, so it cannot be restarted; apply its file first" in outcome.err.splitlines()[-1]


def test_call_makes_a_token_where_one_is_needed_and_takes_it_away(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, name: str
) -> None:
    url = serve(auth=True)["endpoint"]["url"]

    assert cli.ok("url", name).out == f"{url}\n"
    assert cli.ok("call", name, "/a?b=c").json["path"] == "/a?b=c"
    assert cli.ok("token", "list", "--json", "--service", name).json == []
    refused = cli("call", name, "--token", "wrong")
    assert refused.code == 2
    assert json.loads(refused.out)["error"]["type"] == "unauthorized"
    assert refused.err == f"error: {url}/: 401 Unauthorized\n"
    token = cli.ok("token", "create", "--service", name, "--json").json["token"]
    assert cli.ok("call", name, environment={"PREFECT_DSTACK_TOKEN": token}).json["path"] == "/"
    assert token not in cli("call", name, "--token", token, "--debug").err


def test_inspect_shows_all_but_secrets(
    serve: Callable[..., dict[str, Any]],
    cli: CommandLine,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEY", SECRET)
    probe = {"type": "http", "url": "/health", "headers": [{"name": "X-Key", "value": "${{ env.KEY }}"}]}
    serve(env=["KEY"], probes=[{**probe, "interval": "1s"}])
    cli.ok("token", "create", "--service", name)

    text = cli.ok("inspect", name).out
    known = cli.ok("inspect", name, "--json").json

    assert yaml.safe_load(text).keys() == known.keys()
    assert (known["state"], known["route"]["service"], len(known["route"]["tokens"])) == ("serving", name, 1)
    assert [it["number"] for it in known["revisions"]] == [1]
    for shown in (text, json.dumps(known)):
        assert SECRET not in shown
        assert not {"salt", "sha256", "values", "workload", "settings"} & set(shown.replace('"', " ").split())


def test_events_are_listed_and_followed(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, name: str
) -> None:
    serve()
    wait_until(lambda: f"{name}@1  deployed" in cli.ok("events", name).out, 30, "it is listed")
    assert cli("logs", name, "--replica", "99").err == (
        f"error: {name}: there is no replica 99; there are: 0\n"
    )

    with cli.start("events", name, "--follow", "--json") as following:
        assert following.stdout
        assert json.loads(following.stdout.readline())["name"] == "deployed"
        cli.ok("stop", name, "-y")
        stopped = json.loads(following.stdout.readline())
        assert (stopped["name"], stopped["subject"], stopped["revision"]) == ("stopped", name, 1)
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 128 + signal.SIGINT
    assert cli("events", "nobody").err.startswith("error: nobody: there is no such service; there are: ")
    assert [
        json.loads(it)["name"] for it in cli.ok("events", name, "-t", "1", "--json").out.splitlines()
    ] == ["stopped"]


def test_several_are_read_and_stopped_at_once(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, tmp_path: Path, name: str, home: Home
) -> None:
    serve()
    other = f"{name}b"
    place = tmp_path / "other"
    place.mkdir()
    (place / "x.dstack.yml").write_text(yaml.safe_dump(hello(other)))
    cli.ok("apply", place, "-y")

    logs = cli.ok("logs", name, other, "--tail", "1").out.splitlines()
    assert [line.partition(":")[0] for line in logs] == [f"{name}-1-0", f"{other}-1-0"]
    assert "not be" not in cli.ok("logs", name, "--since", "1h").out
    assert cli.ok("logs", name, "--since", "2999-01-01").out == ""

    nobody = cli("stop", name, "nobody", "-y")
    assert (nobody.code, nobody.out) == (2, "")
    assert "nobody: there is no such service or task" in nobody.err
    assert cli.ok("stop", name, other, "-y").out == f"{name} is stopped\n{other} is stopped\n"
    assert home.leftovers() == []
    assert cli.ok("delete", name, other, "-y", "--json").json == [
        {"name": it, "deleted": True, "reason": ""} for it in (name, other)
    ]


def test_stop_all_names_what_it_would_stop(
    serve: Callable[..., dict[str, Any]], terminal: Callable[..., Terminal], name: str, home: Home
) -> None:
    serve()
    shown = terminal("stop", "--all")
    shown.expect("[y/N]")
    shown.type("n")

    assert shown.end() == 2
    assert name in shown.text
    assert [path.name for path in home.state.glob("replicas/*/")] == [f"{name}-1-0"]


def test_names_and_revisions_are_completed(
    serve: Callable[..., dict[str, Any]], cli: CommandLine, name: str
) -> None:
    serve()

    def completed(*words: str) -> list[str]:
        line = ["prefect-dstack", *words]
        environment = {
            "_PREFECT_DSTACK_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(line),
            "COMP_CWORD": str(len(line) - 1),
        }
        return cli("", environment=environment).out.split()

    assert {"stop", "status"} & set(completed("st")) == {"stop"}
    wait_until(lambda: name in completed("logs", name[:3]), 60, "the name is known")
    assert completed("rollback", name, "") == ["1"]
    assert completed("rollback", name, "--to", "") == ["1"]
