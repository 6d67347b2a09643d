"""`controller`: the resident process that scales, wakes and repairs services."""

from __future__ import annotations

import typer

from prefect_dstack.cli.output import connected, out

__all__ = ["application"]

application = typer.Typer(
    help="The resident process that scales, wakes and repairs services.", no_args_is_help=True
)


@application.command()
def run() -> None:
    """Run it in the foreground, until Ctrl-C or SIGTERM."""
    from prefect_dstack.resident.main import main

    main()


@application.command()
def start() -> None:
    """Start it in the background, unless it runs."""
    api = connected()
    from prefect_dstack.resident.background import controller_log, start_controller

    started = start_controller(api)
    out.print(f"{'started' if started else 'runs already'}; it writes to {controller_log()}")


@application.command()
def stop() -> None:
    """Stop it; services go on serving without it."""
    from prefect_dstack.resident.background import stop_controller

    out.print("stopped" if stop_controller() else "it did not run")


@application.command()
def status() -> None:
    """Show whether somebody watches the services, here or elsewhere."""
    connected()
    from prefect_dstack.resident.background import controller_status
    from prefect_dstack.store.controllers import known_controllers

    own = controller_status()
    out.print(f"on this machine: {own.state}{f', process {own.pid}' if own.pid else ''}")
    for leader in known_controllers():
        out.print(f"leads: {leader['where']}")
    if not own.alive:
        raise typer.Exit(1)
