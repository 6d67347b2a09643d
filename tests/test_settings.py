"""Settings come from wherever Prefect's own come from, under both of their names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_dstack.errors import ConfigurationError
from prefect_dstack.settings import settings
from tests.command_line import CommandLine

NEW, OLD = "PREFECT_INTEGRATIONS_DSTACK_LOCAL_GATEWAY_PORT", "PREFECT_DSTACK_LOCAL_GATEWAY_PORT"
PROFILE = """
active = "mine"
[profiles.mine]
{} = "9001"
"""


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting anywhere, and files in a directory of the test's own."""
    for name in (NEW, OLD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    monkeypatch.chdir(tmp_path)


def test_have_defaults() -> None:
    assert settings().local_gateway_port == 8080
    assert settings().home == Path.home() / ".prefect-dstack"


@pytest.mark.parametrize("name", [NEW, OLD])
def test_are_read_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "9001")

    assert settings().local_gateway_port == 9001


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", "[tool.prefect.integrations.dstack]\nlocal_gateway_port = 9001\n"),
        ("prefect.toml", "[integrations.dstack]\nlocal_gateway_port = 9001\n"),
        (".env", f"{NEW}=9001\n"),
        (".env", f"{OLD}=9001\n"),
        ("profiles.toml", PROFILE.format(NEW)),
        ("profiles.toml", PROFILE.format(OLD)),
    ],
)
def test_are_read_from_files(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)

    assert settings().local_gateway_port == 9001


@pytest.mark.parametrize("name", [NEW, OLD])
def test_of_the_environment_come_before_those_of_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.prefect.integrations.dstack]\nlocal_gateway_port = 9001\n"
    )
    monkeypatch.setenv(name, "9002")

    assert settings().local_gateway_port == 9002


def test_of_a_home_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_DSTACK_HOME", "~/elsewhere")

    assert settings().home == Path.home() / "elsewhere"


@pytest.mark.parametrize("value", ["0", "70000", "many", ""])
def test_that_cannot_be_accepted_are_told_in_one_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OLD, value)

    with pytest.raises(ConfigurationError, match=r"^settings: \w*LOCAL_GATEWAY_PORT: .*; it is '.*'$"):
        settings()


def test_of_a_storage_names_a_block_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_DSTACK_BUNDLE_STORAGE", "")
    assert settings().bundle_storage is None
    monkeypatch.setenv("PREFECT_DSTACK_BUNDLE_STORAGE", "s3-bucket/models")
    assert settings().bundle_storage == "s3-bucket/models"
    monkeypatch.setenv("PREFECT_DSTACK_BUNDLE_STORAGE", "models")
    with pytest.raises(
        ConfigurationError, match="must be the type and name of a block, such as s3-bucket/models"
    ):
        settings()


def test_are_shown_by_doctor(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NEW, "9001")
    monkeypatch.delenv(OLD)

    assert "local_gateway_port 9001" in cli("doctor").out


@pytest.mark.parametrize("command", [["--help"], ["apply", "--help"], ["version"], ["schema"]])
def test_prefect_is_not_imported_by_commands_that_do_without_it(command: list[str]) -> None:
    script = (
        "import atexit, sys; atexit.register(lambda: print('prefect' in sys.modules, file=sys.stderr)); "
        f"sys.argv = ['prefect-dstack', *{command!r}]; from prefect_dstack.cli.main import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )

    assert done.stderr.strip() == "False"
