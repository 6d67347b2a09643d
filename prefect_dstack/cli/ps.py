"""`ps`: what is wanted, and what actually runs."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.colours import STATES, paint
from prefect_dstack.cli.completion import remember
from prefect_dstack.cli.moments import age, duration
from prefect_dstack.cli.options import Json, Names
from prefect_dstack.cli.output import out, print_json, reading, show_table
from prefect_dstack.cli.tables import fold

if TYPE_CHECKING:
    from prefect_dstack.services.overview import ReplicaFigures, ServiceOverview
    from prefect_dstack.services.runs.overview import RunOverview
    from prefect_dstack.store.schedules import ScheduleOverview

    Found = tuple[list[ServiceOverview], list[RunOverview], list[ScheduleOverview]]

__all__ = ["ps"]

# Nothing of them runs, and whoever deployed them was told.
HIDDEN = ("stopped", "failed")
OVER = (*HIDDEN, "done")
WATCH_INTERVAL = 1.0
CONTROLLER_START = 30.0
"""Seconds that a controller may take until it is known to watch."""
CLEAR = "\x1b[H\x1b[2J"


def ps(
    names: Names = None,
    json: Json = False,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Stopped and failed services too.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show every change, until Ctrl-C.")] = False,
) -> None:
    """List the services, tasks, dev environments and schedules: what is wanted, and what actually runs."""
    with reading():
        if watch:
            _watch(names or [], json=json, show_all=show_all)
        else:
            _show(*_found(names or [], show_all=show_all, closely=bool(names)), names or [], json=json)


def _found(names: list[str], *, show_all: bool, closely: bool = False) -> Found:
    from prefect_dstack.services.runs.overview import run_overview
    from prefect_dstack.store.records import find_record
    from prefect_dstack.store.schedules import all_schedules
    from prefect_dstack.store.sources import seen_at_once

    with seen_at_once():
        schedules = [it for it in all_schedules() if it.name in names or not names]
        runs = [run for run in run_overview() if run.name in names or not names]
        known = {run.name for run in runs}
        known |= {it.name for it in schedules if find_record(it.name) is None}
        others = [name for name in names if name not in known]
        services = [] if names and not others else _services(others, show_all=show_all, closely=closely)
    return services, [run for run in runs if names or show_all or run.state not in OVER], schedules


def _services(names: list[str], *, show_all: bool, closely: bool) -> list[ServiceOverview]:
    from prefect_dstack.services.overview import overview

    found = overview(names, closely=closely)
    if not names:
        remember({service.name: service.revisions for service in found})
    return [service for service in found if names or show_all or service.state not in HIDDEN]


def _watch(names: list[str], *, json: bool, show_all: bool) -> None:
    shown: Found | None = None
    redraws = sys.stdout.isatty() and not json
    while True:
        found = _found(names, show_all=show_all, closely=redraws and bool(names))
        if found != shown:
            if redraws:
                print(CLEAR, end="")  # noqa: T201
            _show(*found, names, json=json)
            sys.stdout.flush()
            shown = found
        time.sleep(WATCH_INTERVAL)


def _show(
    services: list[ServiceOverview],
    runs: list[RunOverview],
    schedules: list[ScheduleOverview],
    names: list[str],
    *,
    json: bool,
) -> None:
    if json:
        print_json([it.model_dump(mode="json") for it in (*services, *runs, *schedules)])
        return
    if schedules:
        from prefect_dstack.cli.schedules import show_schedules

        show_schedules(schedules)
        if not (services or runs):
            return
        print()  # noqa: T201
    if runs:
        from prefect_dstack.cli.runs import show_runs

        show_runs(runs)
        if not services:
            return
        print()  # noqa: T201
    if not services:
        out.print("no service is deployed; prefect-dstack apply FILE deploys one, init writes a file")
        return
    if names:
        for number, service in enumerate(services):
            if number:
                print()  # noqa: T201
            _show_one(service)
        _say_if_unwatched(services)
        return
    _show_list(services)
    _say_if_unwatched(services)


def _show_list(services: list[ServiceOverview]) -> None:
    price = sum(service.price for service in services)
    heads = ["SERVICE", "REVISION", "STATE", "REPLICAS", "ENDPOINT", "PROBLEMS"]
    rows = [
        [
            service.name,
            "" if service.revision is None else str(service.revision),
            service.state,
            f"{service.serving}/{service.wanted}{' pinned' if service.pinned else ''}",
            service.url or "",
            "; ".join(service.problems),
        ]
        for service in services
    ]
    if price:  # most services run on machines that cost nothing more for it
        heads.insert(4, "PRICE/H")
        for row, service in zip(rows, services, strict=True):
            row.insert(4, dollars(service.price) if service.price else "")
    show_table(heads, rows)
    if price:
        print(f"all services together cost {dollars(price)} an hour")  # noqa: T201


def _say_if_unwatched(services: list[ServiceOverview]) -> None:
    """Print a line where services need a controller, and none watches."""
    waiting = [service.name for service in services if service.needs_controller and not service.watched]
    if waiting and not _controller_begins():
        from prefect_dstack.store.controllers import HOW_TO_START

        verb = "needs" if len(waiting) == 1 else "need"
        line = f"no controller is watching, and {', '.join(waiting)} {verb} one: {HOW_TO_START}"
        print(paint(line, "yellow"))  # noqa: T201


def _controller_begins() -> bool:
    """Return whether the controller of this machine was started just now, and may not watch yet."""
    from prefect_dstack.resident.background import controller_status

    status = controller_status()
    return status.alive and time.time() - (status.started_at or 0.0) < CONTROLLER_START


def _show_one(service: ServiceOverview) -> None:
    title = service.name if service.revision is None else f"{service.name}@{service.revision}"
    state = paint(service.state, STATES.get(service.state))
    print(f"{paint(title, 'bold')}  {state}  {service.serving}/{service.wanted} replicas")  # noqa: T201
    for label, value in (
        ("endpoint", service.url),
        ("models", service.gateway_openai_base_url),
        ("gateway", service.gateway),
        ("on", service.location),
        ("pinned", _pin(service) if service.pinned else None),
        ("price", f"{dollars(service.price)} an hour" if service.price else None),
    ):
        if value:
            print(f"  {label:<9} {value}")  # noqa: T201
    if service.approval is not None:
        approval = service.approval
        print(f"  {'waiting':<9} {service.name}@{approval.revision}, until {approval.until}")  # noqa: T201
        print(f"  {'private':<9} {approval.private_url} on {approval.machine}")  # noqa: T201
    for problem in service.problems:
        _show_folded("problem", problem, "red")
    for resolution in service.resolutions:
        _show_folded("try", resolution, "cyan")
    if service.replicas:
        print()  # noqa: T201
        _show_replicas(service)


def _pin(service: ServiceOverview) -> str:
    release = f"prefect-dstack scale {service.name} --release"
    return f"to {service.wanted}, whatever the file says; {release} lets it decide again"


def _show_replicas(service: ServiceOverview) -> None:
    heads = [
        "REPLICA",
        "STATE",
        "ROUTED",
        "AGE",
        "RESTARTS",
        "REPLACED",
        "REQUESTS",
        "FAILED",
        "MEAN",
        "P95",
        "RUNTIME",
        "MACHINE",
        "LAST CHECK",
    ]
    rows = [
        [
            replica.name,
            replica.state,
            "yes" if replica.routed else "no",
            "" if replica.started_at is None else age(replica.started_at),
            str(replica.restarts),
            str(replica.replaced or ""),
            *_figures(replica.figures),
            replica.runtime,
            replica.instance,
            replica.check,
        ]
        for replica in service.replicas
    ]
    if any(replica.group for replica in service.replicas):
        heads.insert(1, "GROUP")
        for row, replica in zip(rows, service.replicas, strict=True):
            row.insert(1, replica.group)
    if service.price:
        heads.insert(-1, "PRICE/H")
        for row, replica in zip(rows, service.replicas, strict=True):
            row.insert(-1, "?" if replica.price is None else dollars(replica.price))
    show_table(heads, rows)


def _figures(figures: ReplicaFigures | None) -> list[str]:
    if figures is None:
        return ["", "", "", ""]
    p95 = "" if figures.p95 is None else duration(figures.p95)
    return [str(figures.requests), str(figures.failed), duration(figures.first_byte), p95]


def dollars(price: float) -> str:
    """Return a price as people read it."""
    return f"${price:.4g}"


def _show_folded(label: str, text: str, colour: str) -> None:
    width = shutil.get_terminal_size().columns - 12
    for line in fold(text, width) if sys.stdout.isatty() else [text]:
        print(paint(f"  {label:<9} {line}", colour))  # noqa: T201
        label = ""
