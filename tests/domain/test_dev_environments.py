"""What a development environment runs, and what leads into it."""

from __future__ import annotations

import subprocess

import pytest

from prefect_dstack.configurations import DevEnvironmentConfiguration
from prefect_dstack.domain.dev_environments import environment_commands, how_to_enter, ready_line


@pytest.mark.parametrize(
    ("ide", "link"),
    [
        ("vscode", "open it in VS Code: vscode://vscode-remote/ssh-remote+vm/my%20work"),
        ("cursor", "open it in Cursor: cursor://vscode-remote/ssh-remote+vm/my%20work"),
        ("windsurf", "open it in Windsurf: windsurf://vscode-remote/ssh-remote+vm/my%20work"),
        ("zed", "open it in Zed: zed://ssh/vm/my%20work"),
    ],
)
def test_each_editor_has_its_link(ide: str, link: str) -> None:
    configuration = DevEnvironmentConfiguration.model_validate({"name": "vm", "ide": ide})
    assert how_to_enter(configuration, "/my work") == ["enter it with: ssh vm", link]


def test_without_an_editor_there_is_ssh() -> None:
    assert how_to_enter(DevEnvironmentConfiguration(name="vm"), "/") == ["enter it with: ssh vm"]


@pytest.mark.parametrize(("init", "code", "ready"), [("true", 0, True), ("exit 3", 3, False)])
def test_it_is_ready_once_init_has_succeeded(init: str, code: int, ready: bool) -> None:
    *commands, _ = environment_commands(DevEnvironmentConfiguration(name="vm", init=(init,)))
    done = subprocess.run(
        ["sh", "-c", "set -e\n" + "\n".join(commands)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, ready_line("vm") in done.stdout.splitlines()) == (code, ready)
