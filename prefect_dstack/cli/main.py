"""`prefect-dstack`: the commands and their exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from prefect_dstack.cli import (
    apply,
    approval,
    change,
    config,
    controller,
    endpoint,
    events,
    fleets,
    gateways,
    history,
    logs,
    offers,
    ps,
    server,
    ssh,
    stop,
    tokens,
    top,
)
from prefect_dstack.cli.diagnostics import doctor
from prefect_dstack.cli.help import Commands, CommandWithArguments
from prefect_dstack.cli.init import init
from prefect_dstack.cli.output import INTERRUPTED, console_error
from prefect_dstack.cli.runs import attach
from prefect_dstack.errors import PrefectDstackError

__all__ = ["main"]

EXIT_CODES = (
    "Exit codes: 0 all went well; 1 something failed; 2 what you asked for must be changed; "
    "130 interrupted; those of a task, or of a command after ssh NAME --, are its own."
)

application = typer.Typer(
    name="prefect-dstack",
    cls=Commands,
    help="Deploy services from YAML files, and keep them running.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        _version()
        raise typer.Exit


def _version() -> None:
    from importlib.metadata import version as installed

    print(installed("prefect-dstack"))  # noqa: T201


@application.callback()
def prefect_dstack(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_print_version),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Deploy services from YAML files, and keep them running."""


DEPLOY, LOOK, CHANGE, PLATFORM = "Deploy", "Look", "Change", "Platform"


def _add(section: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        application.command(command.__name__.strip("_"), rich_help_panel=section)(command)


def _add_with_arguments(section: str, command: Callable[..., None], meaning: str) -> None:
    application.command(cls=CommandWithArguments, epilog=meaning, rich_help_panel=section)(command)


_add(DEPLOY, init)
_add_with_arguments(DEPLOY, apply.apply, "Everything after -- becomes ${{ run.args }}.")
_add(DEPLOY, offers.offer)
_add_with_arguments(DEPLOY, config.config, "Everything after -- becomes ${{ run.args }}.")
_add(LOOK, ps.ps, top.top, logs.logs, attach)
_add_with_arguments(LOOK, ssh.ssh, "Everything after -- is run there instead of a shell.")
_add(LOOK, endpoint.url, endpoint.open_, endpoint.call)
_add(LOOK, events.events, history.history, history.inspect)
# `scale NAME -1` is a number that makes no sense, and no option that is not known.
application.command("scale", rich_help_panel=CHANGE, context_settings={"ignore_unknown_options": True})(
    change.scale
)
_add(CHANGE, change.restart, change.rollback, change.promote)
_add(CHANGE, approval.approve, approval.reject)
_add(CHANGE, stop.stop, stop.delete, change.reconcile)
for group, title in (
    (gateways.application, "gateway"),
    (fleets.application, "fleet"),
    (tokens.application, "token"),
    (server.application, "server"),
    (controller.application, "controller"),
):
    application.add_typer(group, name=title, rich_help_panel=PLATFORM)
_add(PLATFORM, doctor)


@application.command(rich_help_panel=PLATFORM)
def version() -> None:
    """Print the version."""
    _version()


@application.command(rich_help_panel=PLATFORM)
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    import json

    from prefect_dstack.configurations import configuration_schema

    print(json.dumps(configuration_schema(), indent=2))  # noqa: T201


def _show_traceback(wanted: bool) -> None:
    if wanted:
        import traceback

        traceback.print_exc()


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


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove `--debug` from wherever it stands: people add it at the end of a line that failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*own, *arguments[end:]], len(own) != end


def main() -> None:
    """Run the command line: exit code 0 if all went well, 1 if not, 2 for the user's mistake."""
    arguments, debug = _without_debug(sys.argv[1:])
    signal.signal(signal.SIGTERM, _terminate)
    # Under `nohup` it is ignored, and stays so.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        application(arguments)
    except PrefectDstackError as error:
        _show_traceback(debug)
        console_error(error.report)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console_error(INTERRUPTED)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        _show_traceback(debug)
        where = f"{error.filename}: " if error.filename else ""
        console_error(f"{where}{error.strerror or error}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - what is not ours is told in one line too
        _show_traceback(debug)
        console_error(f"{type(error).__name__}: {error}")
        sys.exit(1)
