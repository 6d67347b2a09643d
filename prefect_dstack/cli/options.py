"""Options and arguments that several commands have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import typer

from prefect_dstack.cli.completion import complete_run, complete_service

__all__ = ["ApplyOptions", "Json", "Name", "Names", "Profile", "RunNames", "Yes"]

Name = Annotated[str, typer.Argument(help="The name of the service.", autocompletion=complete_service)]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="The names of services.", autocompletion=complete_service),
]
RunNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME", help="The names of services, tasks or dev environments.", autocompletion=complete_run
    ),
]
Profile = Annotated[str | None, typer.Option(help="The profile to use, of .dstack/profiles.yml.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@dataclass(frozen=True)
class ApplyOptions:
    """How something is applied.

    Attributes:
        yes: Whether not to ask.
        json: Whether to print JSON.
        force: Whether replicas are replaced even if nothing has changed.
        move: Whether a service of another machine is moved to this one.
        detach: Whether not to wait for a task or a development environment to end.
        artifacts: What is copied back from a task: local paths by those in the task.
    """

    yes: bool = False
    json: bool = False
    force: bool = False
    move: bool = False
    detach: bool = False
    artifacts: Mapping[str, str] = field(default_factory=dict)
