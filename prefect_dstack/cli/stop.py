"""`stop` and `delete`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.options import Json, RunNames, Yes
from prefect_dstack.cli.output import confirm, connected, console_error, out, print_json, progress
from prefect_dstack.errors import NotFoundError, PrefectDstackError, UserError

if TYPE_CHECKING:
    from prefect_dstack.domain.run_record import RunRecord

__all__ = ["delete", "stop"]


def stop(
    names: RunNames = None,
    yes: Yes = False,
    stop_all: Annotated[
        bool, typer.Option("--all", help="Everything that serves, runs or is scheduled.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on without a gateway that is gone for good.")
    ] = False,
    json: Json = False,
) -> None:
    """Stop services, tasks and dev environments, and their schedules; the history of services is kept."""
    if bool(names) == stop_all:
        raise UserError(
            "stop: name what to stop, or say --all, and not both"
            if names
            else "stop: name what to stop, or say --all"
        )
    connected()
    found = _stoppable()
    chosen = found.going if stop_all else list(dict.fromkeys(names or []))
    found.check(chosen)
    if not chosen:
        if json:
            print_json([])
        else:
            out.print("nothing serves, runs or is scheduled")
        return
    if not confirm(f"Stop {_enumerated(chosen)}?", yes):
        raise typer.Exit(2)
    _each(chosen, lambda name: found.stop(name, force=force), "stopped", json=json)


@dataclass(frozen=True)
class _Stoppable:
    """What there is to stop, by name."""

    services: Collection[str]
    runs: Mapping[str, RunRecord]
    scheduled: Collection[str]
    serving: Collection[str]

    @property
    def going(self) -> list[str]:
        """The names of all that serves, runs or is scheduled."""
        running = [name for name, run in self.runs.items() if not run.is_over]
        return list(dict.fromkeys([*self.serving, *running, *self.scheduled]))

    def check(self, names: Collection[str]) -> None:
        """Refuse a name of nothing."""
        known = {*self.services, *self.runs, *self.scheduled}
        for name in names:
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise NotFoundError(f"{name}: there is no such service or task; there are: {there}")

    def stop(self, name: str, *, force: bool) -> None:
        """Stop whatever has a name, its schedule first: that would start again what is stopped."""
        from prefect_dstack.flows.stop import stop_service
        from prefect_dstack.flows.stop_run import stop_run
        from prefect_dstack.store.schedules import remove_schedule

        if name in self.scheduled:
            remove_schedule(name)
        if name in self.services:
            stop_service(name, force)
        elif name in self.runs and not (name in self.scheduled and self.runs[name].is_over):
            stop_run(name)


def _stoppable() -> _Stoppable:
    from prefect_dstack.store.records import readable_records
    from prefect_dstack.store.run_records import all_runs
    from prefect_dstack.store.schedules import all_schedules

    records, unreadable = readable_records()
    return _Stoppable(
        services=[*(it.name for it in records), *unreadable],
        runs={run.name: run for run in all_runs()},
        scheduled=[schedule.name for schedule in all_schedules()],
        serving=[it.name for it in records if it.active is not None or it.deploying or it.approval],
    )


def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="The names of stopped services.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Forget stopped services, tasks and dev environments, with their history, files and tokens."""
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
