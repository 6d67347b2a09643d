"""Two machines on one Prefect API: what is asked of the wrong one is right, or refused and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from prefect_dstack.hosts.ports import free_port
from tests.command_line import CommandLine, Outcome
from tests.flows.conftest import get, hello
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Machine:
    """A home directory of its own, as another machine or worker has it."""

    home: Home
    cli: CommandLine

    def __call__(self, *arguments: str | Path) -> Outcome:
        return self.cli(*arguments, environment=self.home.environment)

    def ok(self, *arguments: str | Path) -> Outcome:
        outcome = self(*arguments)
        assert outcome.code == 0, outcome
        return outcome


@pytest.fixture
def machines(tmp_path: Path, prefect_server: PrefectServer) -> Iterator[tuple[Machine, Machine]]:
    """Two machines; whatever they leave behind fails the test."""
    made = []
    for letter in "ab":
        home = Home(tmp_path / letter)
        home.path.mkdir()
        made.append(Machine(home, CommandLine(tmp_path)))
    yield made[0], made[1]
    leftovers = [line for machine in made for line in machine.home.leftovers()]
    for machine in made:
        machine.home.clear()
    assert not leftovers, leftovers


@pytest.fixture
def file(tmp_path: Path, name: str) -> Callable[..., Path]:
    """Writes the file of a service that says who answers."""

    def file(word: str) -> Path:
        path = tmp_path / f"{word}.dstack.yml"
        path.write_text(yaml.safe_dump(hello(name, env={"GREETING": word})))
        return path

    return file


def listed(machine: Machine, name: str) -> dict[str, object]:
    """What `ps` shows of a service on a machine."""
    (found,) = (it for it in machine.ok("ps", "-a", "--json").json if it["name"] == name)
    return dict(found)


def test_every_verb_from_the_wrong_machine_is_right_or_refused(
    machines: tuple[Machine, Machine], file: Callable[..., Path], name: str
) -> None:
    a, b = machines
    url = a.ok("apply", "-f", file("one"), "-y", "--json").json["endpoint"]["url"]
    a.ok("apply", "-f", file("two"), "-y")

    seen = listed(b, name)
    assert (seen["state"], seen["problems"]) == ("elsewhere", [f"runs on {seen['location']}"])
    assert str(a.home.state) in str(seen["location"])
    assert listed(a, name)["state"] == "serving"

    for verb in (
        ("apply", "-f", file("three"), "-y"),
        ("stop", name, "-y"),
        ("rollback", name, "-y"),
        ("scale", name, "2"),
        ("logs", name),
    ):
        refused = b(*verb)
        assert refused.code == 2, (verb, refused)
        (line,) = [line for line in refused.err.splitlines() if line.startswith("error:")]
        assert str(a.home.state) in line, "the machine is named"
        assert str(b.home.state) in line
    assert "--move" in b("apply", "-f", file("three"), "-y").err

    b.ok("reconcile")
    assert get(url)["greeting"] == "two"
    assert listed(a, name)["state"] == "serving"
    assert listed(a, name)["revision"] == 2
    a.ok("stop", name, "-y")


def test_a_service_that_was_stopped_is_deployed_anywhere(
    machines: tuple[Machine, Machine], file: Callable[..., Path], name: str
) -> None:
    a, b = machines
    a.ok("apply", "-f", file("one"), "-y")
    a.ok("stop", name, "-y")
    url = b.ok("apply", "-f", file("two"), "-y", "--json").json["endpoint"]["url"]
    assert get(url)["greeting"] == "two"
    assert listed(a, name)["state"] == "elsewhere"
    b.ok("stop", name, "-y")


def test_a_move_ends_the_old_one_when_its_machine_is_reconciled(
    machines: tuple[Machine, Machine], file: Callable[..., Path], name: str
) -> None:
    a, b = machines
    old = a.ok("apply", "-f", file("one"), "-y", "--json").json["endpoint"]["url"]
    moved = b.ok("apply", "-f", file("two"), "-y", "--move", "--json")
    new = moved.json["endpoint"]["url"]
    assert get(new)["greeting"] == "two"
    assert "reconcile" in moved.err
    assert get(old)["greeting"] == "one", "it is ended by its own machine, and by nobody else"

    assert f"{name}-1-0" in a.ok("reconcile", "--dry-run").err
    a.ok("reconcile")
    assert not list(a.home.processes())
    assert get(new)["greeting"] == "two"
    assert a.ok("reconcile").err.count("nothing to repair") == 1
    b.ok("stop", name, "-y")


def test_a_move_that_fails_leaves_the_old_one_serving(
    machines: tuple[Machine, Machine], file: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    a, b = machines
    url = a.ok("apply", "-f", file("one"), "-y", "--json").json["endpoint"]["url"]
    broken = tmp_path / "broken.dstack.yml"
    broken.write_text(yaml.safe_dump(hello(name, commands=["exit 3"])))
    failed = b("apply", "-f", broken, "-y", "--move")
    assert failed.code == 2
    assert get(url)["greeting"] == "one"
    assert (listed(a, name)["state"], listed(a, name)["revision"]) == ("serving", 1)
    assert listed(b, name)["state"] == "elsewhere"
    a.ok("stop", name, "-y")


def test_a_gateway_and_its_tokens_belong_to_its_machine(
    machines: tuple[Machine, Machine], file: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    a, b = machines
    gateway = f"g{name}"
    written = tmp_path / "gateway.dstack.yml"
    written.write_text(yaml.safe_dump({"type": "gateway", "name": gateway, "port": free_port()}))
    a.ok("apply", "-f", written, "-y")
    service = file("one")
    keys = {**yaml.safe_load(service.read_text()), "gateway": gateway, "auth": True}
    service.write_text(yaml.safe_dump(keys))
    url = a.ok("apply", "-f", service, "-y", "--json").json["endpoint"]["url"]
    token = a.ok("token", "create", "--service", name, "--json").json

    other = tmp_path / "other.dstack.yml"
    other.write_text(yaml.safe_dump(hello(f"{name}-other", gateway=gateway)))
    for verb in (
        ("apply", "-f", written, "-y"),
        ("gateway", "delete", gateway, "-y"),
        ("apply", "-f", other, "-y"),
        ("token", "create", "--service", name),
        ("token", "create", "--gateway", gateway),
        ("token", "revoke", token["id"]),
    ):
        refused = b(*verb)
        assert refused.code != 0, (verb, refused)
        assert str(a.home.state) in refused.err, "the machine is named"
    (seen,) = (it for it in b.ok("gateway", "list", "--json").json if it["name"] == gateway)
    assert seen["state"].startswith("elsewhere")

    def status(value: str) -> int:
        return httpx.get(url, headers={"Authorization": f"Bearer {value}"}).status_code

    assert status(token["token"]) == 200
    a.ok("token", "revoke", token["id"])
    assert status(token["token"]) == 401
    a.ok("stop", name, "-y")
    a.ok("gateway", "delete", gateway, "-y")
