"""`doctor`, `schema`, `version`: what they say of this machine and of this project."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from prefect_dstack import diagnostics
from prefect_dstack.diagnostics import Diagnosis
from prefect_dstack.errors import GatewayError, HostNotReadyError
from tests.command_line import CommandLine


def test_version_is_that_of_the_package(cli: CommandLine) -> None:
    assert cli.ok("version").out.strip() == version("prefect-dstack")


def test_schema_is_one_that_editors_can_use(cli: CommandLine) -> None:
    schema = cli.ok("schema").json

    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"service", "task", "gateway", "fleet"} <= set(json.dumps(schema).replace('"', " ").split())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(cli: CommandLine, arguments: list[str]) -> None:
    outcome = cli(*arguments)

    listed = outcome.out + outcome.err
    assert all(command in listed for command in ("apply", "ps", "logs", "stop", "gateway", "doctor"))


def test_doctor_finds_what_is_here_and_what_is_not(cli: CommandLine, tmp_path: Path) -> None:
    outcome = cli(
        "doctor",
        environment={
            "DOCKER_HOST": f"unix://{tmp_path}/none.sock",
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        },
    )

    lines = outcome.out.splitlines()
    assert outcome.code == 1
    assert any(line.startswith("ok       HAProxy") for line in lines)
    assert any(line.startswith("missing  a Docker Engine") for line in lines)
    assert any(
        line.startswith("problem  a Prefect API: http://127.0.0.1:9/api does not answer") for line in lines
    )
    assert "start it, or unset PREFECT_API_URL" in outcome.out


class TestDiagnose:
    @pytest.fixture(autouse=True)
    def no_api(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            diagnostics, "_prefect", lambda: Diagnosis("problem", "a Prefect API", "", "start it")
        )

    def test_says_how_to_get_haproxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> str:
            raise GatewayError("install it")

        monkeypatch.setattr("prefect_dstack.gateways.local.haproxy_binary", missing)

        (found,) = [it for it in diagnostics.diagnose() if it.summary.startswith("HAProxy")]
        assert (found.level, found.resolution) == ("problem", "install it")

    def test_says_how_to_get_docker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(self: object) -> None:
            raise HostNotReadyError("install Docker")

        monkeypatch.setattr("prefect_dstack.hosts.local_machine.LocalMachine.docker", missing)

        (found,) = [it for it in diagnostics.diagnose() if "Docker" in it.summary]
        assert (found.level, found.resolution) == ("missing", "install Docker")

    def test_says_that_there_is_no_shell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: None)

        (found,) = [it for it in diagnostics.diagnose() if "shell" in it.summary]
        assert found.level == "problem"

    def test_has_a_resolution_for_all_that_is_not_well(self) -> None:
        assert all(it.resolution for it in diagnostics.diagnose() if it.level != "ok")
