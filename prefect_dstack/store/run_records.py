"""Records of tasks and development environments, kept as blocks by the Prefect API."""

from __future__ import annotations

from pydantic import ValidationError

from prefect_dstack.blocks import DstackRun
from prefect_dstack.domain.run_record import RunRecord
from prefect_dstack.errors import NotFoundError
from prefect_dstack.store import documents

__all__ = ["all_runs", "delete_run", "find_run", "load_run", "save_run"]


def find_run(name: str) -> RunRecord | None:
    """Load the record of a run; None if there is none of that name.

    Args:
        name: The name of the run.
    """
    found = documents.read(DstackRun, name)
    return None if found is None else RunRecord.model_validate(found[1]["record"])


def load_run(name: str) -> RunRecord:
    """Load the record of a run.

    Args:
        name: The name of the run.

    Raises:
        NotFoundError: If there is no such run.
    """
    record = find_run(name)
    if record is None:
        known = ", ".join(documents.names(DstackRun)) or "none"
        raise NotFoundError(f"{name}: there is no such task or dev environment; there are: {known}")
    return record


def save_run(record: RunRecord) -> None:
    """Save the record of a run.

    Args:
        record: The record.
    """
    found = documents.read(DstackRun, record.name)
    written = record.model_dump(mode="json")
    if found is None:
        documents.save(DstackRun(record=written), record.name)
    else:
        documents.replace(found[0], {**found[1], "record": written})


def delete_run(name: str) -> None:
    """Forget a run.

    Args:
        name: The name of the run.
    """
    documents.delete(DstackRun, name)


def all_runs() -> list[RunRecord]:
    """Load the records of all runs, by name; those that cannot be read are left out."""
    found = []
    for data in documents.data_of_all(DstackRun).values():
        try:
            found.append(RunRecord.model_validate(data["record"]))
        except (ValidationError, KeyError):
            continue
    return found
