"""`fleet`: list, show and delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.options import Json, Yes
from prefect_dstack.cli.output import confirm, connected, out, print_json, progress, show_table

if TYPE_CHECKING:
    from prefect_dstack.backends.inspection import HostReport
    from prefect_dstack.configurations import FleetConfiguration

__all__ = ["application", "apply"]

application = typer.Typer(
    help="Hosts that are reached over SSH.", no_args_is_help=True, rich_markup_mode=None
)
Name = Annotated[str, typer.Argument(help="The name of the fleet.")]


def apply(configuration: FleetConfiguration, *, yes: bool, json: bool = False) -> None:
    """Check the hosts of a fleet and keep it.

    Args:
        configuration: The fleet.
        yes: Whether not to ask.
        json: Whether to print JSON.
    """
    if not confirm(f"Apply fleet {configuration.name}?", yes):
        raise typer.Exit(2)
    connected()
    from prefect_dstack.flows.fleets import apply_fleet

    with progress():
        reports = apply_fleet(configuration)
    _print(reports, json=json)


@application.command("list")
def list_(json: Json = False) -> None:
    """List the fleets and their hosts."""
    connected()
    from prefect_dstack.flows.fleets import known_fleets, unusable_fleets
    from prefect_dstack.store.sources import resolve_infrastructure

    infrastructure = resolve_infrastructure()
    fleets, unusable = known_fleets(infrastructure), unusable_fleets(infrastructure)
    if json:
        known = [
            {"name": name, "hosts": [h.name for h in it.hosts], "problem": ""} for name, it in fleets.items()
        ]
        print_json([*known, *({"name": n, "hosts": [], "problem": why} for n, why in unusable.items())])
        return
    if not fleets and not unusable:
        out.print("there is no fleet; prefect-dstack apply -f FILE makes one")
        return
    rows = [[name, ", ".join(h.name for h in fleet.hosts)] for name, fleet in fleets.items()]
    show_table(["FLEET", "HOSTS"], [*rows, *([name, problem] for name, problem in unusable.items())])


@application.command()
def show(name: Name, json: Json = False) -> None:
    """Inspect the hosts of a fleet."""
    connected()
    from prefect_dstack.backends.inspection import check_fleet
    from prefect_dstack.errors import NotFoundError
    from prefect_dstack.flows.fleets import known_fleets
    from prefect_dstack.store.sources import resolve_infrastructure

    fleets = known_fleets(resolve_infrastructure())
    if name not in fleets:
        raise NotFoundError(f"{name}: there is no such fleet; there are: {', '.join(fleets) or 'none'}")
    reports = check_fleet(fleets[name])
    _print(reports, json=json)


@application.command()
def delete(
    name: Name,
    yes: Yes = False,
    force: Annotated[
        bool, typer.Option("--force", help="Forget hosts that cannot be reached, with what may run there.")
    ] = False,
    json: Json = False,
) -> None:
    """Forget a fleet; its hosts are left as they are."""
    connected()
    from prefect_dstack.flows.fleets import delete_fleet

    if not confirm(f"Delete fleet {name}?", yes):
        raise typer.Exit(2)
    with progress():
        delete_fleet(name, force)
    if json:
        print_json({"name": name, "deleted": True})
    else:
        out.print(f"fleet {name} is deleted")


def _print(reports: list[HostReport], *, json: bool) -> None:
    if json:
        print_json([report.model_dump(mode="json") for report in reports])
    else:
        _show(reports)


def _show(reports: list[HostReport]) -> None:
    rows = []
    for report in reports:
        has = report.inventory
        gpus = ", ".join(f"{gpu.name} {gpu.memory_gb:.0f}GB" for gpu in has.gpus) if has else ""
        rows.append(
            [
                report.host,
                str(has.cpus) if has else "",
                f"{has.memory_gb:.0f}GB" if has else "",
                gpus,
                f"{has.free_disk_gb:.0f}/{has.disk_gb:.0f}GB" if has else "",
                has.docker_version if has else "",
                str(len(report.claims)) if has else "",
                "; ".join(f"{p.summary}: {p.remedy}" for p in report.problems) or "none",
            ]
        )
    show_table(["HOST", "CPUS", "MEMORY", "GPUS", "FREE DISK", "DOCKER", "REPLICAS", "PROBLEMS"], rows)
