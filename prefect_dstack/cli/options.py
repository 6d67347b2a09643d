"""Options and arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_dstack.cli.completion import complete_run, complete_service

__all__ = ["Json", "Name", "Names", "Profile", "RunNames", "Yes"]

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
