"""What a development environment runs, and what leads into it. Decisions."""

from __future__ import annotations

import shlex
from urllib.parse import quote

from prefect_dstack.configurations import DevEnvironmentConfiguration

__all__ = ["environment_commands", "how_to_enter", "ready_line"]

# The scheme of an editor's links is its name in the configuration.
EDITORS = {"vscode": "VS Code", "cursor": "Cursor", "windsurf": "Windsurf", "zed": "Zed"}


def ready_line(name: str) -> str:
    """Return the line that a development environment writes once its `init` commands have succeeded.

    Args:
        name: Its name.
    """
    return f"{name} is ready"


def environment_commands(configuration: DevEnvironmentConfiguration) -> tuple[str, ...]:
    """Return what a development environment runs: its `init` commands, then nothing until it is stopped.

    Args:
        configuration: The development environment; it has a name.
    """
    ready = shlex.quote(ready_line(configuration.name or ""))
    return (*configuration.init, f"echo {ready}", "exec tail -f /dev/null")


def how_to_enter(configuration: DevEnvironmentConfiguration, directory: str) -> list[str]:
    """Return what leads into a development environment, for its user.

    Args:
        configuration: The development environment; it has a name.
        directory: Where its sessions begin.

    Example:
        >>> how_to_enter(DevEnvironmentConfiguration(name="vm", ide="zed"), "/my work")
        ['enter it with: ssh vm', 'open it in Zed: zed://ssh/vm/my%20work']
    """
    name, ide = configuration.name or "", configuration.ide
    lines = [f"enter it with: ssh {name}"]
    if ide is not None:
        host = f"ssh/{name}" if ide == "zed" else f"vscode-remote/ssh-remote+{name}"
        lines.append(f"open it in {EDITORS[ide]}: {ide}://{host}{quote(directory)}")
    return lines
