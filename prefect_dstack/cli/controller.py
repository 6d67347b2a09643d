"""`controller`: the resident process that scales, wakes and repairs services."""

from __future__ import annotations

import typer

from prefect_dstack.cli.options import Json
from prefect_dstack.cli.output import connected, out, print_json

__all__ = ["application"]

START_TIMEOUT = 120.0

application = typer.Typer(
    help="The resident process that scales, wakes and repairs services.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@application.command()
def run() -> None:
    """Run it in the foreground, until Ctrl-C or SIGTERM."""
    from prefect_dstack.resident.main import main

    main()


@application.command()
def start(json: Json = False) -> None:
    """Start it in the background, unless it runs, and wait until it watches."""
    api = connected()
    from prefect_dstack.resident.background import controller_log, start_controller

    started = start_controller(api, START_TIMEOUT)
    if json:
        print_json({"started": started, "log": str(controller_log())})
    else:
        out.print(f"{'started' if started else 'runs already'}; it writes to {controller_log()}")


@application.command()
def stop(json: Json = False) -> None:
    """Stop it; services go on serving without it."""
    from prefect_dstack.resident.background import stop_controller

    stopped = stop_controller()
    if json:
        print_json({"stopped": stopped})
    else:
        out.print("stopped" if stopped else "it was not running")


@application.command()
def status(json: Json = False) -> None:
    """Show whether somebody watches the services, here or elsewhere."""
    connected()
    from prefect_dstack.resident.background import controller_status
    from prefect_dstack.store.controllers import known_controllers

    own = controller_status()
    leaders = [leader["where"] for leader in known_controllers()]
    if json:
        print_json({"state": own.state, "pid": own.pid, "leaders": leaders})
    else:
        out.print(f"on this machine: {own.state}{f', process {own.pid}' if own.pid else ''}")
        if own.state == "lost":
            out.print(
                "its supervisor was killed, so it is not started again: prefect-dstack controller start"
            )
        for leader in leaders:
            out.print(f"leads: {leader}")
    if not own.alive:
        raise typer.Exit(1)
