"""`approve` and `reject`: what becomes of a revision that waits for approval."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_dstack.cli.options import Json, Name, Yes
from prefect_dstack.cli.output import confirm, connected, out, print_json, progress

__all__ = ["approve", "reject"]

Reason = Annotated[str, typer.Option("--reason", "-r", help="Why, for the history.")]


def approve(name: Name, reason: Reason = "", yes: Yes = False, json: Json = False) -> None:
    """Approve a revision that waits for it."""
    connected()
    from prefect_dstack.flows.approval import approve_service

    if not confirm(f"{_question(name)}", yes):
        raise typer.Exit(2)
    with progress():
        endpoint = approve_service(name, reason)
    if json:
        print_json(endpoint.model_dump(mode="json"))
    else:
        out.print(f"[bold]{name}@{endpoint.revision}[/bold] serves at [bold]{endpoint.url}[/bold]")


def reject(name: Name, reason: Reason = "", yes: Yes = False, json: Json = False) -> None:
    """Remove a revision that waits for approval; what serves is left as it is."""
    connected()
    from prefect_dstack.flows.approval import reject_service
    from prefect_dstack.store.records import load_record

    if not confirm(f"Remove the revision of {name} that waits for approval?", yes):
        raise typer.Exit(2)
    with progress():
        reject_service(name, reason)
    active = load_record(name).active
    if json:
        print_json({"service": name, "revision": active})
    else:
        out.print(f"{name}: rejected; {f'{name}@{active} serves on' if active else 'nothing serves'}")


def _question(name: str) -> str:
    from prefect_dstack.store.records import load_record

    pending = load_record(name).pending()
    return f"Approve what waits of {name}?" if pending is None else pending.question
