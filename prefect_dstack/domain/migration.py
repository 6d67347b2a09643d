"""Records as earlier versions of prefect-dstack have written them, brought up to date: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.record import RECORD_VERSION, ServiceRecord
from prefect_dstack.errors import OrchestratorError

__all__ = ["read_record"]


def read_record(data: Mapping[str, Any]) -> ServiceRecord:
    """Read a record of this version or of an earlier one.

    Args:
        data: The record as it was saved.

    Returns:
        The record, with the fields of this version.

    Raises:
        OrchestratorError: If a newer version has written it in a way that this one would misread.
    """
    version = int(data.get("version", 1))
    if version > RECORD_VERSION:
        raise OrchestratorError(
            f"{data.get('name')}: its record has version {version}, and this prefect-dstack reads versions "
            f"up to {RECORD_VERSION}: upgrade prefect-dstack here"
        )
    for migrate in _MIGRATIONS[version - 1 :]:
        data = migrate(data)
    return ServiceRecord.model_validate(data)


def _to_version_2(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Move the wanted number of replicas out of the revision, and note when each revision last served."""
    revisions = [_with_served_at(revision) for revision in data.get("revisions", [])]
    active = next((known for known in revisions if known["number"] == data.get("active")), None)
    desired = None
    if active is not None:
        loaded = load_configuration(active["configuration"], name=data["name"])
        count = loaded.replica_count if isinstance(loaded, ServiceConfiguration) else 1
        desired = {"replicas": count, "set_by": "configuration", "set_at": active["created_at"]}
    return {**data, "version": 2, "revisions": revisions, "desired": desired}


def _with_served_at(revision: Mapping[str, Any]) -> Mapping[str, Any]:
    if revision.get("outcome") not in ("active", "superseded", "stopped"):
        return revision
    returns = [rollback["at"] for rollback in revision.get("rollbacks", [])]
    return {**revision, "served_at": max([revision["created_at"], *returns])}


_MIGRATIONS: tuple[Callable[[Mapping[str, Any]], Mapping[str, Any]], ...] = (_to_version_2,)
