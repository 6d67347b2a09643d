"""`prefect-dstack`: the commands and their exit codes."""

from __future__ import annotations

import os
import signal
import sys

import typer

from prefect_dstack.cli import controller, fleets, gateways, server, services, tokens
from prefect_dstack.cli.diagnostics import doctor
from prefect_dstack.cli.output import INTERRUPTED, console_error
from prefect_dstack.cli.runs import attach
from prefect_dstack.errors import PrefectDstackError

__all__ = ["main"]

application = typer.Typer(
    name="prefect-dstack",
    help="Put a service on the air from a YAML file, and keep it there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
services.register(application)
application.add_typer(gateways.application, name="gateway")
application.add_typer(fleets.application, name="fleet")
application.add_typer(tokens.application, name="token")
application.add_typer(server.application, name="server")
application.add_typer(controller.application, name="controller")
application.command()(doctor)
application.command()(attach)


@application.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(installed("prefect-dstack"))  # noqa: T201


@application.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    import json

    from prefect_dstack.configurations import configuration_schema

    print(json.dumps(configuration_schema(), indent=2))  # noqa: T201


def _terminate(*_: object) -> None:
    """End on SIGTERM; while a flow runs, Prefect gets the signal, and sends it on once all is undone."""
    console_error(INTERRUPTED)
    sys.exit(128 + signal.SIGTERM)


def _hang_up(*_: object) -> None:
    """End as on SIGTERM when the terminal is gone; nobody reads what is written from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command line: exit code 0 if all went well, 1 if not, 2 for the user's mistake."""
    signal.signal(signal.SIGTERM, _terminate)
    # Under `nohup` it is ignored, and stays so.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        application()
    except PrefectDstackError as error:
        console_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console_error(INTERRUPTED)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - what is not ours is told in one line too
        console_error(f"{type(error).__name__}: {error}")
        sys.exit(1)
