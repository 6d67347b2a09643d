"""`history` and `inspect`: what there was, and everything that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dstack.cli.colours import OUTCOMES, paint
from prefect_dstack.cli.options import Json, Name
from prefect_dstack.cli.output import print_json, reading

if TYPE_CHECKING:
    from datetime import datetime

    from prefect_dstack.domain.record import DesiredReplicas, Revision, ServiceRecord

__all__ = ["history", "inspect"]

CHANGES = {"+": "green", "-": "red", "~": "yellow"}


def history(name: Name, json: Json = False) -> None:
    """List the revisions of a service: who, when, what changed, how it ended; and how it was scaled."""
    with reading():
        from prefect_dstack.domain.record import Revision
        from prefect_dstack.domain.revision import changes_of
        from prefect_dstack.store.records import load_record

        record = load_record(name)
        if json:
            print_json(
                [
                    revision.model_dump(mode="json", exclude={"workload", "settings"})
                    | {"changes": changes_of(record, revision), "waiting": _waits(record, revision)}
                    for revision in record.revisions
                ]
            )
            return
        entries: list[tuple[datetime, Revision | DesiredReplicas]] = [
            *((revision.created_at, revision) for revision in record.revisions),
            *((scaling.set_at, scaling) for scaling in record.scalings),
        ]
        for _, entry in sorted(entries, key=lambda entry: entry[0], reverse=True):
            if isinstance(entry, Revision):
                changes = changes_of(record, entry).splitlines()
                _show(record, entry, [line for line in changes if not line.startswith(("--- ", "+++ "))])
            elif entry.before is not None:
                _show_scaling(record.name, entry)


def _show(record: ServiceRecord, revision: Revision, changes: list[str]) -> None:
    title = paint(f"{record.name}@{revision.number}", "bold")
    pending = record.approval if _waits(record, revision) else None
    ended = revision.outcome if pending is None else "waiting"
    outcome = paint(ended, OUTCOMES.get(ended))
    print(f"{title}  {revision.created_at:%Y-%m-%d %H:%M:%S} UTC  {revision.created_by}  {outcome}")  # noqa: T201
    lines = [(revision.reason, "red")] if revision.reason else []
    if pending is not None:
        lines.append((f"waits for approval; answers at {pending.private_url} on {pending.machine}", "yellow"))
    if revision.evaluation is not None:
        lines.append((f"evaluated: {revision.evaluation.summary}", ""))
    decision = revision.decision
    if decision is not None and decision.approved:
        why = f": {decision.reason}" if decision.reason else ""
        lines.append((f"approved {decision.at:%Y-%m-%d %H:%M:%S} UTC by {decision.by}{why}", ""))
    for rollback in revision.rollbacks:
        lines.append((f"rolled back to {rollback.at:%Y-%m-%d %H:%M:%S} UTC by {rollback.by}", ""))
    lines += [(f"{key}: {value}", "") for key, value in revision.annotations.items()]
    lines += [(line, CHANGES.get(line[:1], "dim")) for line in changes]
    for line, style in lines:
        print(f"    {paint(line, style)}")  # noqa: T201


def _show_scaling(service: str, scaling: DesiredReplicas) -> None:
    title, pinned = paint(service, "bold"), ", pinned" if scaling.pinned else ""
    print(f"{title}  {scaling.set_at:%Y-%m-%d %H:%M:%S} UTC  {scaling.set_by}  {scaling.change}{pinned}")  # noqa: T201


def _waits(record: ServiceRecord, revision: Revision) -> bool:
    return record.approval is not None and record.approval.revision == revision.number


def inspect(name: Name, json: Json = False) -> None:
    """Print everything that is known of a service, as YAML; no secret is in it."""
    with reading():
        from prefect_dstack.services.inspection import inspect_service

        known = inspect_service(name)
    if json:
        print_json(known)
        return
    import yaml

    print(yaml.safe_dump(known, sort_keys=False, allow_unicode=True), end="")  # noqa: T201
