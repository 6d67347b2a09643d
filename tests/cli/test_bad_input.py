"""A mistake in a file is told in one line, with exit code 2, before anybody is asked for anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_dstack.cli.main import main
from tests.command_line import CommandLine, Outcome

GOOD = "type: service\nname: hello\nport: 8000\ncommands:\n  - exec python3 -m http.server $PORT\n"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """The command line in this process, which spares the time of starting another."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["prefect-dstack", *map(str, arguments)])
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        return Outcome(code, out, err)

    return run


@pytest.fixture
def refused(run: Callable[..., Outcome], tmp_path: Path) -> Callable[..., str]:
    """What is said of a file that must not be accepted."""

    def refused(content: str | bytes, *options: str) -> str:
        file = tmp_path / "serve.dstack.yml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        outcome = run("apply", "-f", file, "-y", *options)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.err.endswith("\n")
        (line,) = outcome.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ").replace(f"{tmp_path}/", "")

    return refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GOOD.replace("port: 8000", "prot: 8000"),
            "serve.dstack.yml:3: prot: unknown key, did you mean 'port'?",
        ),
        (GOOD + "colour: blue\n", "serve.dstack.yml:6: colour: unknown key"),
        (GOOD.replace("port: 8000\n", ""), "serve.dstack.yml:1: port: is missing"),
        (
            GOOD.replace("8000", "70000"),
            "serve.dstack.yml:3: port: must be a port from 1 to 65535, not 70000",
        ),
        (GOOD.replace("8000", "70000:8000"), "serve.dstack.yml:3: port: must be a port from 1 to 65535"),
        (GOOD.replace("8000", "0"), "serve.dstack.yml:3: port: must be a port from 1 to 65535, not 0"),
        (GOOD.replace("  - exec", "\t- exec"), "serve.dstack.yml:5: "),
        ("- a\n- list\n", "serve.dstack.yml:1: must be a mapping that starts with 'type: service'"),
        ("just text\n", "serve.dstack.yml:1: must be a mapping that starts with 'type: service'"),
        ("", "serve.dstack.yml: is empty; start with 'type: service'"),
        ("# nothing\n", "serve.dstack.yml: is empty; start with 'type: service'"),
        ("{unclosed: [\n", "serve.dstack.yml:2: "),
        ("type: servise\nport: 8000\n", "serve.dstack.yml:1: type: must be service"),
        (b"type: service\xff\n", "serve.dstack.yml:1: is not UTF-8 text"),
        (GOOD.replace("hello", "../hello"), "serve.dstack.yml:2: name: "),
        (GOOD.replace("hello", '"hel\\nlo"'), "serve.dstack.yml:2: name: "),
        (GOOD.replace("hello", '"hel\'lo"'), "serve.dstack.yml:2: name: "),
        (GOOD.replace("hello", "h" * 300), "serve.dstack.yml:2: name: "),
        (GOOD.replace("hello", "/etc/passwd"), "serve.dstack.yml:2: name: "),
        (GOOD.replace("  - exec python3 -m http.server $PORT\n", "  []\n"), "serve.dstack.yml:4: commands: "),
        (
            GOOD + 'probes:\n  - url: "/health\\n  http-request deny"\n',
            "serve.dstack.yml:7: probes.0.url: ",
        ),
        (
            GOOD + 'probes:\n  - url: /\n    headers:\n      - {name: X-A, value: "a\\n  acl evil"}\n',
            "serve.dstack.yml:9: probes.0.headers.0.value: ",
        ),
        (
            GOOD + 'probes:\n  - url: /\n    headers:\n      - {name: "X-A\\r\\nEvil", value: a}\n',
            "serve.dstack.yml:9: probes.0.headers.0.name: ",
        ),
        (GOOD + 'path_prefix: "/a\\n  use_backend other"\n', "serve.dstack.yml:6: path_prefix: "),
        (GOOD + 'domain: "a.example\\n  bind :1"\n', "serve.dstack.yml:6: domain: "),
        (
            GOOD + 'rate_limits:\n  - {prefix: "/a b\\n", rps: 1}\n',
            "serve.dstack.yml:7: rate_limits.0.prefix: ",
        ),
        (GOOD + "env:\n  - TOKEN=${{ secret.TOKEN }}\n", "serve.dstack.yml:7: "),
        (GOOD + "env:\n  - TOKEN=${{ env.NOT_SET_ANYWHERE }}\n", "serve.dstack.yml:7: "),
        (GOOD + "reservation: cr-0123\n", "serve.dstack.yml:6: reservation: is not acted on yet"),
        (GOOD + "user: root\n", "serve.dstack.yml:6: user: needs a container"),
    ],
)
def test_is_told_with_its_place(refused: Callable[..., str], content: str | bytes, message: str) -> None:
    assert refused(content).startswith(message)


def test_of_a_missing_file(run: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run("apply", "-f", tmp_path / "missing.dstack.yml", "-y")

    assert outcome.code == 2
    assert outcome.err == f"error: {tmp_path}/missing.dstack.yml: no such file\n"


def test_of_a_directory(run: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run("apply", "-f", tmp_path, "-y")

    assert outcome.code == 2
    assert "there is no configuration in" in outcome.err


@pytest.mark.parametrize(
    "name", ["../x", "a\nb", "a'b", 'a"b', "x" * 300, "", " ", "a;b", "-a", "$(id)", "a\0b"]
)
def test_of_a_name_on_the_command_line(refused: Callable[..., str], name: str) -> None:
    assert "name" in refused(GOOD, "-n", name)


def test_of_a_profile_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "nightly" in refused(GOOD, "--profile", "nightly")


def test_without_an_answer_whether_to_do_it(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """Nobody is there to ask, so nothing is done."""
    (tmp_path / "serve.dstack.yml").write_text(GOOD)

    outcome = run("apply", "-f", tmp_path / "serve.dstack.yml")

    assert outcome.code == 2
    assert "add -y" in outcome.err


@pytest.mark.parametrize("arguments", [["applly"], ["logs"], ["logs", "a", "--tail", "x"], ["--what"]])
def test_of_the_command_itself(run: Callable[..., Outcome], arguments: list[str]) -> None:
    outcome = run(*arguments)

    assert outcome.code == 2
    assert outcome.out == ""
    assert "Usage" in outcome.err


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_is_in_the_file(refused: Callable[..., str], content: bytes) -> None:
    assert refused(content).startswith("serve.dstack.yml")


def test_is_told_by_the_installed_command_too(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "serve.dstack.yml"
    file.write_text(GOOD.replace("port: 8000", "prot: 8000"))

    outcome = cli("apply", "-f", file, "-y", "--json")

    assert outcome == Outcome(2, "", f"error: {file}:3: prot: unknown key, did you mean 'port'?\n")
