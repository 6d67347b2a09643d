"""`restart`, `scale`, `rollback`, `promote`, `reconcile`: changes of what serves, without a file."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_dstack.cli.completion import complete_revision
from prefect_dstack.cli.options import Json, Name, Yes
from prefect_dstack.cli.output import confirm, connected, out, print_json, progress
from prefect_dstack.errors import UserError

__all__ = ["promote", "reconcile", "restart", "rollback", "scale"]


def restart(name: Name, json: Json = False) -> None:
    """Replace the replicas of a service by new ones; the old ones serve until those are ready."""
    connected()
    from prefect_dstack.flows.restart import restart_service

    with progress():
        endpoint = restart_service(name)
    if json:
        print_json(endpoint.model_dump(mode="json"))
    else:
        out.print(f"[bold]{name}@{endpoint.revision}[/bold] serves at [bold]{endpoint.url}[/bold]")


def scale(
    name: Name,
    replicas: Annotated[int | None, typer.Argument(help="How many replicas, pinned until released.")] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Let the file, or the autoscaler, decide again.")
    ] = False,
    group: Annotated[
        str | None, typer.Option("--group", "-g", help="The group of replicas, where there are groups.")
    ] = None,
    json: Json = False,
) -> None:
    """Change how many replicas a service has; that makes no new revision."""
    if (replicas is None) != release:
        which = (
            "give the number of replicas, or --release"
            if replicas is None
            else "either a number or --release"
        )
        raise UserError(f"scale: {which}")
    if replicas is not None:
        from prefect_dstack.domain.record import check_replicas

        check_replicas(replicas)
    connected()
    from prefect_dstack.flows.scale import scale_service

    with progress():
        endpoint = scale_service(name, replicas, group=group)
    if json:
        print_json(endpoint.model_dump(mode="json"))
        return
    count = len(endpoint.replicas)
    number = f"{name}@{endpoint.revision} has {count} {'replica' if count == 1 else 'replicas'}"
    if release:
        out.print(f"{number}; its file, or its load, decides again")
        return
    out.print(f"{number}, pinned: prefect-dstack scale {name} --release lets its file decide again")
    if not count:
        out.print(
            "requests get 503, after waiting where the file allows no replicas: what is pinned wakes for none"
        )


def rollback(
    name: Name,
    revision: Annotated[
        int | None,
        typer.Argument(
            help="The revision; default: the one that served before.", autocompletion=complete_revision
        ),
    ] = None,
    to: Annotated[
        int | None, typer.Option(help="The same as an option.", autocompletion=complete_revision)
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Go back to an earlier revision."""
    if revision is not None and to is not None:
        raise UserError("rollback: give the revision once: as an argument, or with --to")
    connected()
    from prefect_dstack.flows.rollback import rollback_service
    from prefect_dstack.store.records import load_record

    record = load_record(name)
    asked = to if revision is None else revision
    former = record.previous_revision if asked is None else record.revision(asked)
    present = "nothing" if record.active is None else f"revision {record.active}"
    if not confirm(f"Take {name} from {present} back to revision {former.number}?", yes):
        raise typer.Exit(2)
    with progress():
        endpoint = rollback_service(name, former.number)
    if json:
        print_json(endpoint.model_dump(mode="json"))
    else:
        out.print(f"[bold]{name}@{endpoint.revision}[/bold] serves at [bold]{endpoint.url}[/bold]")


def promote(name: Name, json: Json = False) -> None:
    """Promote a canary that waits for a person."""
    connected()
    from prefect_dstack.flows.promote import promote_service

    with progress():
        revision = promote_service(name)
    if json:
        print_json({"service": name, "revision": revision})
    else:
        out.print(f"{name}@{revision} takes over; prefect-dstack ps shows how it goes")


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report what would be done.")] = False,
    foreign: Annotated[
        bool,
        typer.Option(
            "--foreign", help="Remove also what flow runs have created that this API does not know."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Repair services: replace replicas that are gone, and remove what nobody owns."""
    connected()
    from prefect_dstack.flows.reconcile import reconcile_services

    with progress():
        done = reconcile_services(dry_run=dry_run, foreign=foreign)
    if json:
        print_json({"dry_run": dry_run, "done": done})
