"""What replicas of failed revisions have written last: kept in the Prefect API when they are removed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact

from prefect_dstack.configurations import Environment
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.store.clients import api_client

__all__ = ["failure_log", "keep_failure_log"]

LINES_KEPT = 1000
BYTES_KEPT = 64 * 1024
FENCE = "````"


def keep_failure_log(
    infrastructure: Infrastructure,
    record: ServiceRecord,
    revision: int,
    environment: Environment,
) -> None:
    """Keep what the replicas of a revision have written, before they are removed.

    Args:
        infrastructure: Where they run.
        record: The record of the service.
        revision: The revision whose replicas they are.
        environment: Its secrets are taken out of what is kept.
    """
    with contextlib.suppress(PrefectDstackError):
        found = [
            item
            for item in infrastructure.observe(record.name, record.runtimes).found
            if item.replica.stamp.revision == revision
        ]
        text = environment.hide(_last_lines(infrastructure, found))
        if len(text) > BYTES_KEPT:
            text = text[-BYTES_KEPT:].partition("\n")[2] or text[-BYTES_KEPT:]
        if text:
            create_markdown_artifact(
                key=_key(record.name, revision),
                markdown=f"{FENCE}text\n{text}\n{FENCE}",
                description=f"What the replicas of {record.name}@{revision} wrote before they were removed",
                _sync=True,  # type: ignore[call-arg]
            )


def failure_log(record: ServiceRecord, revision: int | None) -> str | None:
    """Return what was kept of a failed revision.

    Args:
        record: The record of the service.
        revision: The revision; None: the last one, if that failed.

    Returns:
        Its lines; None if nothing was kept.
    """
    if revision is None:
        if not record.revisions or record.revisions[-1].outcome != "failed":
            return None
        revision = record.revisions[-1].number
    with api_client() as client:
        found = client.request(
            "POST",
            "/artifacts/filter",
            json={
                "artifacts": {"key": {"any_": [_key(record.name, revision)]}},
                "sort": "CREATED_DESC",
                "limit": 1,
            },
        ).json()
    if not found:
        return None
    return str(found[0]["data"]).removeprefix(f"{FENCE}text\n").removesuffix(f"\n{FENCE}")


def _key(service: str, revision: int) -> str:
    return f"{service}-{revision}-log"


def _last_lines(infrastructure: Infrastructure, found: Sequence[FoundReplica]) -> str:
    lines: list[str] = []
    for item in found:
        runtime = infrastructure.runtime(item.instance, item.replica.runtime)
        machine = infrastructure.machine(item.instance)
        prefix = f"{item.replica.name}: " if len(found) > 1 else ""
        share = LINES_KEPT // max(1, len(found))
        lines += [f"{prefix}{line}" for line in runtime.logs(machine, item.replica, tail=share)]
    return "\n".join(lines)
