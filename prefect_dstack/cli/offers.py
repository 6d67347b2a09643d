"""`offer`: where a service could run, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.options import Json, Profile
from prefect_dstack.cli.output import connected, out, print_json, show_table

if TYPE_CHECKING:
    from prefect_dstack.backends.base import Offer

__all__ = ["offer", "show_offers"]


def offer(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="The configuration; default: the *.dstack.yml here."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="The same.")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name; default: the file's.")] = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Show where a service could run, and at what price; nothing is created."""
    from prefect_dstack.cli.files import choose_source

    source = choose_source(file, path)
    from prefect_dstack.services.loading import load_service

    configuration = load_service(source, name=name, profile=profile)
    connected()
    from prefect_dstack.domain.groups import group_configurations, group_names
    from prefect_dstack.domain.workload import requirements_of
    from prefect_dstack.store.sources import resolve_infrastructure

    infrastructure = resolve_infrastructure()
    runs = zip(group_names(configuration), group_configurations(configuration), strict=True)
    found = {group: infrastructure.offers(requirements_of(run)) for group, run in runs}
    if json:
        print_json(
            [
                one.model_dump(mode="json") | ({"group": group} if group else {})
                for group, offers in found.items()
                for one in offers
            ]
        )
        return
    for group, offers in found.items():
        show_offers(offers, len(offers), group)


def show_offers(offers: Sequence[Offer], of: int, group: str = "") -> None:
    """Print offers.

    Args:
        offers: The offers.
        of: How many there are in all.
        group: The group of replicas that they are for, where there are groups.
    """
    if group:
        out.print(f"for group {group}:", markup=False)
    show_table(
        ["BACKEND", "INSTANCE", "REGION", "CPUS", "MEMORY", "GPUS", "SPOT", "PRICE PER HOUR"],
        [
            [
                offer.backend,
                offer.instance_type,
                offer.region,
                f"{offer.cpus:g}",
                f"{offer.memory_gb:.0f}GB",
                ", ".join(f"{gpu.count} x {gpu.name} {gpu.memory_gb:.0f}GB" for gpu in offer.gpus),
                "yes" if offer.spot else "",
                "price unknown" if offer.price is None else f"${offer.price:.4f}",
            ]
            for offer in offers
        ],
    )
    if of > len(offers):
        out.print(f"and {of - len(offers)} more", style="dim")
