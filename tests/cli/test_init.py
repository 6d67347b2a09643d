"""`init`: what it asks, and that what it writes can be applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.cli.starters import STARTERS, Answers
from prefect_dstack.configurations import load_configuration
from prefect_dstack.domain.support import check_support
from prefect_dstack.errors import ConfigurationError
from tests.cli.terminal import Terminal
from tests.command_line import CommandLine

answers = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)


@pytest.mark.parametrize("template", STARTERS)
def test_every_template_writes_a_file_that_apply_takes(
    cli: CommandLine, tmp_path: Path, template: str
) -> None:
    outcome = cli.ok("init", "--template", template, "--name", "mine", "--yes")

    assert outcome.out.startswith("wrote mine.dstack.yml\n")
    loaded = load_configuration(tmp_path / "mine.dstack.yml")
    assert loaded.name == "mine"
    if loaded.type != "dev-environment":
        check_support(loaded)
    assert "#" in (tmp_path / "mine.dstack.yml").read_text()


@pytest.mark.parametrize("template", STARTERS)
def test_what_was_answered_is_in_the_file_or_refused(template: str) -> None:
    @given(what=answers, gpu=answers, replicas=st.integers(1, 1000))
    def check(what: str, gpu: str, replicas: int) -> None:
        starter = STARTERS[template]
        text = starter.write(Answers("mine", what, "" if starter.gpu is None else gpu, replicas))
        try:
            loaded = load_configuration(text)
        except ConfigurationError:
            return
        assert (loaded.type, loaded.name) == (yaml.safe_load(text)["type"], "mine")

    check()


def test_asks_five_questions(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    shown = terminal("init", columns=60)
    for question, answer in (
        ("Template [fastapi]", "vllm"),
        ("Name [", "chat"),
        ("Model [", "my/model"),
        ("GPU, such as 24GB or H100:2 [24GB]", "80GB"),
        ("Replicas [1]", "2"),
    ):
        shown.expect(question)
        shown.type(answer)

    assert shown.end() == 0
    written = yaml.safe_load((tmp_path / "chat.dstack.yml").read_text())
    assert (written["name"], written["replicas"], written["model"]) == ("chat", 2, "my/model")
    assert written["resources"] == {"gpu": "80GB"}


def test_writes_over_nothing_unless_told_to(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "mine.dstack.yml"
    file.write_text("mine")

    refused = cli("init", "--name", "mine", "--yes")

    assert (refused.code, refused.out) == (2, "")
    assert "already exists; --force overwrites it" in refused.err
    assert file.read_text() == "mine"
    cli.ok("init", "--name", "mine", "--yes", "--force")
    assert file.read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["init"], "there is no terminal to ask on: add --yes"),
        (["init", "--template", "rails"], "there are vllm, tgi, llama.cpp, fastapi, gradio, task, dev"),
        (["init", "--yes", "--name", "No Name"], "name: must be"),
        (["init", "--yes", "file"], "is not a directory"),
        (["init", "--yes", "nowhere/app.dstack.yml"], "is named after the service, so give --name"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    cli: CommandLine, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "file").touch()

    outcome = cli(*arguments)

    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert said in line
    assert not list(tmp_path.glob("*.dstack.yml"))
