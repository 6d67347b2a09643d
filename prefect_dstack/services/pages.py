"""What the Prefect UI shows of a service, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect_dstack.domain.evaluation import Evaluation
from prefect_dstack.domain.record import PendingApproval, Revision, ServiceRecord
from prefect_dstack.domain.revision import changes_of

__all__ = ["approval_page"]


def approval_page(record: ServiceRecord, pending: PendingApproval) -> str:
    """Return what a person needs to decide about a revision that waits for approval.

    Args:
        record: The record of the service.
        pending: What waits.
    """
    revision = record.revision(pending.revision)
    parts = [
        f"# {record.name}@{revision.number} waits for approval",
        f"{pending.question} It is removed if nobody approves it until {pending.until}.",
        f"- Deployed by {revision.created_by} at {_time(revision.created_at)}",
        f"- Private endpoint, on {pending.machine}: <{pending.private_url}>",
        f"- Decide with `prefect-dstack approve {record.name}` or `prefect-dstack reject {record.name}`",
        *_evaluation(revision.evaluation),
        *_changes(record, revision),
    ]
    return "\n\n".join(parts)


def _evaluation(evaluation: Evaluation | None) -> Iterable[str]:
    if evaluation is None:
        return
    yield "## Evaluation"
    yield evaluation.summary[:1].upper() + evaluation.summary[1:]
    if evaluation.table:
        yield _table(evaluation.table)


def _changes(record: ServiceRecord, revision: Revision) -> Iterable[str]:
    changes = changes_of(record, revision)
    if changes:
        yield "## Changes"
        yield f"````diff\n{changes}\n````"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
