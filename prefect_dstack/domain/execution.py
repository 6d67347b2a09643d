"""How a workload is started: in a container or as a process of this machine, and with which Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from prefect_dstack.configurations import RunConfiguration

__all__ = ["RuntimeName", "python_of", "runtime_of"]

RuntimeName = Literal["docker", "process"]

# `pip`, `pip3.12`, `python -m pip`, `uv`: but not `./.venv/bin/pip`, which has an environment of its own.
_INSTALLER = re.compile(r"(?<![\w./-])(?:uvx?|pip[0-9.]*)(?![\w./-])")


def runtime_of(configuration: RunConfiguration | Mapping[str, Any]) -> RuntimeName:
    """Decide what starts the replicas or nodes of a configuration.

    Args:
        configuration: A service, a task or a development environment, or the keys that one was recorded with.

    Returns:
        `docker` where an image is named, be it for one group of replicas, or machines other than this one may
        be used: fleets, instances of them, or any backend but `local`; then a configuration without an image
        gets the default one. `process` otherwise.
    """
    keys = configuration if isinstance(configuration, Mapping) else vars(configuration)
    if any(keys.get(key) for key in ("image", "fleets", "instances")) or any(_images_of_groups(keys)):
        return "docker"
    elsewhere = [name for name in keys.get("backends") or () if name != "local"]
    return "docker" if elsewhere else "process"


def _images_of_groups(keys: Mapping[str, Any]) -> Iterator[Any]:
    for key in ("groups", "replicas"):
        groups = keys.get(key)
        for group in groups if isinstance(groups, (list, tuple)) else ():
            yield group.get("image") if isinstance(group, Mapping) else getattr(group, "image", None)


def python_of(configuration: RunConfiguration, commands: Sequence[str]) -> str | None:
    """Decide whether commands run in a virtual environment of their own.

    Args:
        configuration: A service, a task or a development environment.
        commands: What it runs.

    Returns:
        The version of Python of the environment; an empty text for any version: in the default image, and
        for processes that install packages, which must not change an environment of the machine. None for
        no environment.
    """
    if configuration.image is not None or configuration.docker or configuration.entrypoint or not commands:
        return None
    if configuration.python is not None:
        return configuration.python
    if runtime_of(configuration) == "docker":
        return ""
    return "" if any(_INSTALLER.search(command) for command in commands) else None
