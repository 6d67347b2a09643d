"""The revisions of a service as people and programs read them, without anything secret."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.model_asset import asset_key
from prefect_dstack.domain.record import Outcome, Revision, Rollback, ServiceRecord
from prefect_dstack.domain.revision import changes_of

__all__ = ["RevisionOverview", "history_of"]


class RevisionOverview(BaseModel):
    """One revision of a service: who, when, what changed, how it ended."""

    model_config = ConfigDict(frozen=True)

    service: str = Field(description="The name of the service.")
    number: int = Field(description="The number of the revision.")
    outcome: Outcome = Field(description="How its deployment ended.")
    reason: str = Field(description="Why it failed, in one line.")
    created_at: datetime = Field(description="When its deployment began.")
    created_by: str = Field(description="Who deployed it: user and machine.")
    flow_run: str = Field(description="The id of the flow run that deployed it.")
    served_at: datetime | None = Field(description="When it last began to serve; None: it never has.")
    rollbacks: list[Rollback] = Field(description="The returns to it from later revisions.")
    model_asset: str | None = Field(description="The key of its model as a Prefect asset, if it names one.")
    model_version: str = Field(
        description="What tells the content of its model from any other; empty: not known."
    )
    annotations: dict[str, Any] = Field(description="What its deployer has written on it, such as a commit.")
    configuration: dict[str, Any] = Field(description="As written; secrets only as references.")
    changes: str = Field(description="What it changed: a diff against the revision before it.")


def history_of(record: ServiceRecord) -> list[RevisionOverview]:
    """Return the revisions that are kept of a service.

    Args:
        record: Its record.

    Returns:
        The revisions, the oldest first.
    """
    return [
        RevisionOverview.model_validate(
            {
                **revision.model_dump(),
                "service": record.name,
                "model_asset": _model_asset(revision),
                "changes": changes_of(record, revision),
            }
        )
        for revision in record.revisions
    ]


def _model_asset(revision: Revision) -> str | None:
    model = revision.configuration.get("model_asset")
    return None if model is None else asset_key(model, Path(revision.directory))
