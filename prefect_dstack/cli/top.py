"""`top`: the traffic of the services, live."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.moments import duration
from prefect_dstack.cli.options import Json, Names
from prefect_dstack.cli.output import out, print_json, reading, show_table

if TYPE_CHECKING:
    from prefect_dstack.services.traffic import ServiceTraffic, Traffic

__all__ = ["top"]

HEADS = ["SERVICE", "REPLICAS", "REQ/S", "ERR/S", "MEAN", "P95", "OPEN", "WAITING", "PROBLEMS"]


def top(
    names: Names = None,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Show one interval and exit, as without a terminal.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the traffic of the services, live: requests and errors per second, and latency.

    MEAN is the mean time to the first byte of the slowest replica's last 1,024 answers.
    """
    with reading():
        from prefect_dstack.services.traffic import Traffic

        traffic = Traffic(names or [])
        found = traffic.look()
        if once or json or not sys.stdout.isatty():
            time.sleep(interval)
            _show(traffic.look(), json=json)
        else:
            _live(traffic, found, interval)


def _show(services: list[ServiceTraffic], *, json: bool) -> None:
    if json:
        print_json([service.model_dump(mode="json") for service in services])
    elif services:
        show_table(HEADS, [_cells(service) for service in services])
    else:
        out.print("no service is deployed")


def _live(traffic: Traffic, found: list[ServiceTraffic], interval: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table(services: list[ServiceTraffic]) -> Table:
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for number, head in enumerate(HEADS):
            drawn.add_column(head, justify="left" if number in (0, len(HEADS) - 1) else "right")
        for service in services:
            failing = service.error_rate > 0 or service.serving < service.wanted
            drawn.add_row(*_cells(service), style="red" if failing else None)
        return drawn

    with Live(table(found), console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(table(traffic.look()), refresh=True)


def _cells(service: ServiceTraffic) -> list[str]:
    if service.problem:
        return [service.name, f"-/{service.wanted}", *[""] * 6, service.problem]
    return [
        service.name,
        f"{service.serving}/{service.wanted}",
        f"{service.rate:.1f}",
        f"{service.error_rate:.1f}",
        "" if service.first_byte is None else duration(service.first_byte),
        "" if service.p95 is None else duration(service.p95),
        str(service.in_flight),
        str(service.waiting),
        "",
    ]
