"""`server`: the Prefect server on this machine."""

from __future__ import annotations

import typer

from prefect_dstack.cli.options import Json
from prefect_dstack.cli.output import err, out, print_json

__all__ = ["application"]

application = typer.Typer(
    help="The Prefect server that is started where no other is configured.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@application.command()
def start(json: Json = False) -> None:
    """Start it, unless it runs."""
    from prefect_dstack.api import start_local_server

    url = start_local_server(lambda line: err.print(line, markup=False))
    if json:
        print_json({"url": url})
    else:
        out.print(url)


@application.command()
def stop(json: Json = False) -> None:
    """Stop it; services go on serving without it."""
    from prefect_dstack.api import stop_local_server

    stopped = stop_local_server()
    if json:
        print_json({"stopped": stopped})
    else:
        out.print("stopped" if stopped else "it was not running")


@application.command()
def url(json: Json = False) -> None:
    """Print the URL of its API, for PREFECT_API_URL."""
    from prefect_dstack.api import local_server_url
    from prefect_dstack.errors import NotFoundError

    found = local_server_url()
    if found is None:
        raise NotFoundError("no local Prefect server runs; prefect-dstack server start starts one")
    if json:
        print_json({"url": found})
    else:
        print(found)  # noqa: T201
