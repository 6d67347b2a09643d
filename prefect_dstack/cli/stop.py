"""`stop` and `delete`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from prefect_dstack.cli.options import Json, RunNames, Yes
from prefect_dstack.cli.output import confirm, connected, console_error, out, print_json, progress
from prefect_dstack.errors import NotFoundError, PrefectDstackError, UserError

__all__ = ["delete", "stop"]


def stop(
    names: RunNames = None,
    yes: Yes = False,
    stop_all: Annotated[bool, typer.Option("--all", help="Everything that serves or runs.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on without a gateway that is gone for good.")
    ] = False,
    json: Json = False,
) -> None:
    """Stop services, tasks and dev environments; the history of services is kept."""
    if bool(names) == stop_all:
        raise UserError("stop: name what to stop, or say --all")
    connected()
    from prefect_dstack.store.records import readable_records
    from prefect_dstack.store.run_records import all_runs

    records, unreadable = readable_records()
    runs = {run.name: run for run in all_runs()}
    serving = [it.name for it in records if it.active is not None or it.deploying or it.approval]
    services = [*(it.name for it in records), *unreadable]
    if stop_all:
        chosen = [*serving, *(name for name, run in runs.items() if not run.is_over and name not in serving)]
    else:
        chosen = list(dict.fromkeys(names or []))
    for name in chosen:
        if name not in services and name not in runs:
            known = ", ".join(sorted({*services, *runs})) or "none"
            raise NotFoundError(f"{name}: there is no such service or task; there are: {known}")
    if not chosen:
        if json:
            print_json([])
        else:
            out.print("nothing serves or runs")
        return
    if not confirm(f"Stop {_enumerated(chosen)}?", yes):
        raise typer.Exit(2)
    from prefect_dstack.flows.stop import stop_service
    from prefect_dstack.flows.stop_run import stop_run

    def act(name: str) -> None:
        if name in services:
            stop_service(name, force)
        else:
            stop_run(name)

    _each(chosen, act, "stopped", json=json)


def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="The names of stopped services.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Forget stopped services, with their history and files."""
    connected()
    from prefect_dstack.cli.runs import is_run
    from prefect_dstack.flows.delete import delete_service
    from prefect_dstack.flows.delete_run import delete_run
    from prefect_dstack.store.records import load_record

    runs = {name for name in names if is_run(name)}
    for name in names:
        if name not in runs:
            load_record(name)
    if not confirm(f"Forget {_enumerated(names)}, history and all?", yes):
        raise typer.Exit(2)

    def forget(name: str) -> None:
        (delete_run if name in runs else delete_service)(name)

    _each(list(dict.fromkeys(names)), forget, "deleted", json=json)


def _each(names: list[str], act: Callable[[str], object], done: str, *, json: bool) -> None:
    """Do something to one after the other; a failure keeps nobody from the rest, and is the exit code."""
    code = 0
    outcomes = []
    for name in names:
        try:
            with progress():
                act(name)
        except PrefectDstackError as error:
            if len(names) == 1:
                raise
            console_error(str(error))
            code = max(code, error.exit_code)
            outcomes.append({"name": name, done: False, "reason": str(error)})
        else:
            outcomes.append({"name": name, done: True, "reason": ""})
            if not json:
                out.print(f"{name} is {done}")
    if json:
        print_json(outcomes)
    if code:
        raise typer.Exit(code)


def _enumerated(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
