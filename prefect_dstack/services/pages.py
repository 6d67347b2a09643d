"""What the Prefect UI shows of a service, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect_dstack.domain.evaluation import Evaluation
from prefect_dstack.domain.record import PendingApproval, Revision, ServiceRecord
from prefect_dstack.domain.revision import changes_of
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.costs import hourly_price, over_budget

__all__ = ["approval_page", "service_page", "with_load"]

LOAD = "## The last day"


def service_page(record: ServiceRecord, found: Sequence[FoundReplica] | None = None) -> str:
    """Return the page of a service: how it is, how it is called, and its revisions.

    Args:
        record: The record of the service.
        found: Its replicas; None: only their names are known.
    """
    return "\n\n".join(
        [
            f"# {record.name}",
            *_state(record),
            *_approval(record),
            *_calls(record),
            *_replicas(record, found),
            *_revisions(record),
        ]
    )


def with_load(page: str, load: str) -> str:
    """Return the page of a service with what it has borne at its end.

    Args:
        page: The page, perhaps with an older load.
        load: Markdown.
    """
    before = page.partition(f"{LOAD}\n")[0].rstrip()
    return f"{before}\n\n{LOAD}\n\n{load}"


def approval_page(record: ServiceRecord, pending: PendingApproval) -> str:
    """Return what a person needs to decide about a revision that waits for approval.

    Args:
        record: The record of the service.
        pending: What waits.
    """
    revision = record.revision(pending.revision)
    parts = [
        f"## {record.name}@{revision.number} waits for approval",
        f"{pending.question} It is removed if nobody approves it until {pending.until}.",
        f"- Deployed by {revision.created_by} at {_time(revision.created_at)}",
        f"- Private endpoint, on {pending.machine}: <{pending.private_url}>",
        f"- From anywhere, with a token: `prefect-dstack call {record.name} / --revision {revision.number}`",
        f"- Decide with `prefect-dstack approve {record.name}` or `prefect-dstack reject {record.name}`",
        *_evaluation(revision.evaluation),
        *_changes(record, revision),
    ]
    return "\n\n".join(parts)


def _state(record: ServiceRecord) -> Iterable[str]:
    endpoint, last = record.endpoint, record.revisions[-1] if record.revisions else None
    failed = last is not None and last.outcome == "failed"
    if failed and last is not None:
        yield f"> **{record.name}@{last.number} failed:** {last.reason}"
    if record.active is None or endpoint is None:
        yield f"**{'Nothing serves' if failed or record.approval else 'Stopped'}.**"
        return
    count = len(endpoint.replicas)
    replicas = f"{count} {'replica' if count == 1 else 'replicas'}"
    yield f"**{record.name}@{record.active} serves** at <{endpoint.url}> with {replicas}."


def _approval(record: ServiceRecord) -> Iterable[str]:
    if record.approval is not None:
        yield approval_page(record, record.approval)


def _calls(record: ServiceRecord) -> Iterable[str]:
    endpoint = record.endpoint
    if record.active is None or endpoint is None:
        return
    yield "## Call it"
    if endpoint.auth:
        yield f"Requests need a token: `prefect-dstack token create --service {record.name}`"
    if endpoint.openai_base_url is not None:
        key = 'os.environ["TOKEN"]' if endpoint.auth else '"none"'
        yield _code(
            "python",
            *(["import os", ""] if endpoint.auth else []),
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{endpoint.openai_base_url}", api_key={key})',
            "answer = client.chat.completions.create(",
            f'    model="{endpoint.model}", messages=[{{"role": "user", "content": "Hello"}}]',
            ")",
        )
        if endpoint.gateway_openai_base_url is not None:
            yield f"All models of the gateway are at `{endpoint.gateway_openai_base_url}`."
        return
    header = ' -H "Authorization: Bearer $TOKEN"' if endpoint.auth else ""
    yield _code("console", f"$ curl{header} {endpoint.url}/")
    lines = ["import urllib.request", "", f'request = urllib.request.Request("{endpoint.url}/")']
    if endpoint.auth:
        lines = ["import os", *lines]
        lines.append('request.add_header("Authorization", f"Bearer {os.environ[\'TOKEN\']}")')
    yield _code(
        "python", *lines, "with urllib.request.urlopen(request) as answer:", "    print(answer.read())"
    )


def _replicas(record: ServiceRecord, found: Sequence[FoundReplica] | None) -> Iterable[str]:
    names = [] if record.endpoint is None else record.endpoint.replicas
    rows: list[dict[str, Any]] = [{"replica": name} for name in names]
    price = hourly_price(item.instance for item in found or ())
    if found is not None:
        rows = [
            {
                "replica": item.replica.name,
                "runtime": item.replica.runtime,
                "machine": item.instance.name,
                "backend": item.instance.backend,
                **({"price per hour": _price(item.instance.price)} if price else {}),
            }
            for item in found
        ]
    if rows:
        yield "## Replicas"
        yield _table(rows)
    if price:
        excess = over_budget(record, price)
        yield f"**It {excess}.**" if excess else f"Together they cost {_price(price)} an hour."


def _revisions(record: ServiceRecord) -> Iterable[str]:
    if not record.revisions:
        return
    yield "## Revisions"
    yield _table([_row(record, revision) for revision in reversed(record.revisions)])
    active = record.active_revision
    if active is not None:
        yield from _evaluation(active.evaluation)
        yield from _changes(record, active)


def _row(record: ServiceRecord, revision: Revision) -> dict[str, str]:
    waits = record.approval is not None and record.approval.revision == revision.number
    decision, evaluation = revision.decision, revision.evaluation
    notes = [revision.reason] if revision.reason else []
    if evaluation is not None and evaluation.passed:
        notes.append(f"evaluation {evaluation.summary}")
    if decision is not None and decision.approved:
        notes.append(f"approved by {decision.by}{f': {decision.reason}' if decision.reason else ''}")
    notes += [f"rolled back to by {rollback.by}" for rollback in revision.rollbacks[-1:]]
    return {
        "revision": f"{record.name}@{revision.number}",
        "state": "waiting" if waits else revision.outcome,
        "deployed": _time(revision.created_at),
        "by": revision.created_by,
        "notes": "; ".join(notes),
    }


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _evaluation(evaluation: Evaluation | None) -> Iterable[str]:
    if evaluation is None:
        return
    yield "### Evaluation"
    yield evaluation.summary[:1].upper() + evaluation.summary[1:]
    if evaluation.table:
        yield _table(evaluation.table)


def _changes(record: ServiceRecord, revision: Revision) -> Iterable[str]:
    changes = changes_of(record, revision)
    if changes:
        yield "### Changes"
        yield f"````diff\n{changes}\n````"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return ("" if value is None else str(value)).replace("|", "\\|").replace("\n", " ")


def _price(dollars: float | None) -> str:
    return "unknown" if dollars is None else f"${dollars:.4g}"


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
