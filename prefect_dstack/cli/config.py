"""`config`: a file as it is understood."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefect_dstack.cli.options import Json, Profile
from prefect_dstack.cli.output import print_json

__all__ = ["config"]


def config(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The configuration; default: the *.dstack.yml here."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="The same.")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name; default: the file's.")] = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Print a file as it is understood: checked, with its profile and the values of all defaults."""
    from prefect_dstack.cli.apply import load
    from prefect_dstack.cli.files import choose_source
    from prefect_dstack.domain.support import check_support

    configuration = load(choose_source(file, path), name=name, profile=profile, arguments=context.args)
    check_support(configuration)
    known = {"type": configuration.type} | configuration.model_dump(mode="json", exclude_none=True)
    if json:
        print_json(known)
        return
    import yaml

    print(yaml.safe_dump(known, sort_keys=False, allow_unicode=True), end="")  # noqa: T201
