"""Schedules on the command line: what a file with one becomes, and what starts when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prefect_dstack.cli.output import confirm, connected, err, out, print_json, show_table

if TYPE_CHECKING:
    from prefect_dstack.cli.options import ApplyOptions
    from prefect_dstack.store.schedules import ScheduleOverview

__all__ = ["apply_schedule", "end_schedule", "show_schedules"]


def apply_schedule(
    configuration: Any,
    source: Path | str,
    options: ApplyOptions,
    *,
    profile: str | None,
    arguments: Sequence[str],
) -> None:
    """Start what a configuration describes on its schedule.

    Args:
        configuration: A service, task or development environment with a schedule and a name.
        source: Where it was read from: a path or text.
        options: How.
        profile: The profile to use.
        arguments: What `${{ run.args }}` stands for.
    """
    crons = " and ".join(f"'{cron}'" for cron in configuration.schedule.cron)
    if not confirm(f"Start {configuration.name} on the schedule {crons} (UTC)?", options.yes):
        raise typer.Exit(2)
    connected()
    from prefect_dstack.client.schedules import create_schedule
    from prefect_dstack.store.schedules import has_worker

    made = create_schedule(source, name=configuration.name, profile=profile, args=list(arguments) or None)
    if options.json:
        print_json(made.model_dump(mode="json"))
    else:
        crons = " and ".join(f"'{cron}'" for cron in made.cron)
        out.print(f"[bold]{made.name}[/bold] starts on the schedule {crons} (UTC), by {made.deployment}")
    if not has_worker(made.work_pool):
        err.print(
            f"no worker is running to start it: prefect worker start --pool {made.work_pool}",
            style="yellow",
            markup=False,
        )


def end_schedule(name: str) -> None:
    """Remove the schedule that an earlier form of a file had.

    Args:
        name: What it started.
    """
    from prefect_dstack.store.schedules import remove_schedule

    if remove_schedule(name):
        err.print(f"{name}: is no longer on a schedule: the file has none", style="dim", markup=False)


def show_schedules(schedules: Sequence[ScheduleOverview]) -> None:
    """Print a table of what starts when.

    Args:
        schedules: The schedules.
    """
    show_table(
        ["SCHEDULED", "KIND", "CRON (UTC)", "NEXT", "WORK POOL"],
        [[it.name, it.kind, " and ".join(it.cron), _next(it), it.work_pool] for it in schedules],
    )


def _next(schedule: ScheduleOverview) -> str:
    if schedule.paused:
        return "paused"
    return "" if schedule.next is None else f"{schedule.next:%Y-%m-%d %H:%M}"
