"""Which file `apply`, `offer` and `config` take."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefect_dstack.configurations import load_configuration
from tests.cli.terminal import Terminal
from tests.command_line import PROGRAM, CommandLine

TEXT = "type: service\nname: {}\nport: 8000\ncommands: [exec true]\n"


def place(directory: Path, *names: str) -> None:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / f"{name}.dstack.yml").write_text(TEXT.format(name or "unnamed"))


@pytest.mark.parametrize("command", ["apply", "config", "offer"])
def test_an_empty_directory_leads_to_init(cli: CommandLine, command: str) -> None:
    outcome = cli(command)

    assert outcome.code == 2
    assert outcome.err == (
        "error: there is no configuration here (*.dstack.yml): prefect-dstack init writes one, "
        "or name a file\n"
    )


@pytest.mark.parametrize("name", ["", "only"])
def test_the_only_one_here_is_taken(cli: CommandLine, tmp_path: Path, name: str) -> None:
    place(tmp_path, name)

    assert yaml.safe_load(cli.ok("config").out)["name"] == (name or "unnamed")


@pytest.mark.parametrize("way", [["sub"], ["-f", "sub"], ["sub/a.dstack.yml"], ["-f", "sub/a.dstack.yml"]])
def test_a_file_or_directory_is_named(cli: CommandLine, tmp_path: Path, way: list[str]) -> None:
    place(tmp_path, "other")
    place(tmp_path / "sub", "a")

    assert cli.ok("config", "--json", *way).json["name"] == "a"


def test_several_are_named_where_nobody_can_be_asked(cli: CommandLine, tmp_path: Path) -> None:
    place(tmp_path, "a", "b")

    outcome = cli("apply", "-y")

    assert outcome.code == 2
    assert outcome.err == "error: there are 2 configurations here, name one: a.dstack.yml, b.dstack.yml\n"


def test_several_are_asked_for_on_a_terminal(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    place(tmp_path, "a", "b")
    shown = terminal("config", "--json", columns=60)
    shown.expect("Which one? [1-2]")
    shown.type("7")
    shown.type("2")

    assert shown.end() == 0
    assert '"name": "b"' in shown.text


def test_standard_input_is_one_too(cli: CommandLine, tmp_path: Path) -> None:
    for way in (["-"], ["-f", "-"]):
        done = subprocess.run(
            [PROGRAM, "config", *way],
            input=TEXT.format("piped"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        assert yaml.safe_load(done.stdout)["name"] == "piped"
    empty = cli("apply", "-", "-y")
    assert (empty.code, empty.err) == (
        2,
        "error: standard input: is empty; start with 'type: service'\n",
    )


def test_two_at_once_are_one_too_many(cli: CommandLine) -> None:
    outcome = cli("apply", "a.yml", "-f", "b.yml")

    assert (outcome.code, outcome.err) == (2, "error: name one configuration: a.yml, or --file b.yml\n")


def test_what_follows_two_dashes_is_for_the_file(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.dstack.yml").write_text(
        TEXT.format("a").replace("[exec true]", "\n  - exec true ${{ run.args }}")
    )

    shown = cli.ok("config", "--json", "a.dstack.yml", "--", "--port", "b c", "--debug").json

    assert shown["commands"] == ["exec true --port 'b c' --debug"]


def test_config_prints_what_loads_to_the_same(cli: CommandLine, tmp_path: Path) -> None:
    place(tmp_path, "a")
    (tmp_path / ".dstack").mkdir()
    (tmp_path / ".dstack" / "profiles.yml").write_text(
        "profiles:\n  - {name: mine, backends: [local], default: true}\n"
    )

    printed = cli.ok("config").out

    assert yaml.safe_load(printed)["backends"] == ["local"]
    file = load_configuration(tmp_path / "a.dstack.yml")
    assert load_configuration(printed).model_dump() == file.model_dump()
