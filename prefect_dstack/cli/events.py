"""`events`: what has happened to services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_dstack.cli.colours import paint
from prefect_dstack.cli.options import Json, Names
from prefect_dstack.cli.output import out, reading

if TYPE_CHECKING:
    from prefect_dstack.services.events import ServiceEvent

__all__ = ["events"]

STYLES = {
    "deployed": "green",
    "restored": "green",
    "failed": "red",
    "degraded": "yellow",
    "over-budget": "yellow",
    "interrupted": "yellow",
    "renewal-failed": "red",
    "approval-requested": "cyan",
    "approved": "green",
    "rejected": "red",
    "canary-promoted": "green",
    "canary-rejected": "red",
    "unchanged": "dim",
}


def events(
    names: Names = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now.")] = False,
    since: Annotated[
        str, typer.Option("--since", "-s", help="Only what has happened since then: 10m, 2h, or a time.")
    ] = "7d",
    tail: Annotated[int | None, typer.Option("--tail", "-t", min=1, help="Only so many, the latest.")] = None,
    json: Json = False,
) -> None:
    """List the events of services, the latest last."""
    from prefect_dstack.cli.moments import parse_moment

    moment = parse_moment(since, "--since")
    with reading():
        from prefect_dstack.services.events import follow_events, read_events, refuse_unknown

        found = read_events(names or [], since=moment, limit=tail)
        refuse_unknown(names or [], found)
        if not found and not follow and not json:
            out.print(f"nothing has happened since {moment:%Y-%m-%d %H:%M} UTC")
        for event in found:
            _show(event, json=json)
        if follow:
            known = {event.id for event in found}
            start = found[-1].occurred if found else moment
            for event in follow_events(names or [], since=start):
                if event.id not in known:
                    _show(event, json=json)


def _show(event: ServiceEvent, *, json: bool) -> None:
    if json:
        print(event.model_dump_json(), flush=True)  # noqa: T201
        return
    subject = event.subject if event.revision is None else f"{event.subject}@{event.revision}"
    name = paint(event.name, STYLES.get(event.name))
    detail = _detail(event.payload)
    print(  # noqa: T201
        f"{paint(f'{event.occurred:%Y-%m-%d %H:%M:%S}', 'dim')}  {paint(subject, 'bold')}  {name}"
        + (f"  {detail}" if detail else ""),
        flush=True,
    )


def _detail(payload: dict[str, Any]) -> str:
    if "after" in payload:
        change = f"{payload.get('before')} → {payload['after']}"
        return f"{change}: {payload['reason']}" if payload.get("reason") else change
    for key in ("reason", "url"):
        if payload.get(key):
            return str(payload[key])
    problems = payload.get("problems")
    if isinstance(problems, list):
        return "; ".join(map(str, problems))
    replicas = payload.get("replicas")
    return "" if replicas is None else f"{len(replicas) if isinstance(replicas, list) else replicas} replicas"
