"""Records of services, kept as blocks by the Prefect API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from prefect.types import SecretDict
from pydantic import ValidationError

from prefect_dstack.blocks import DstackService
from prefect_dstack.domain.migration import read_record
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import ConfigurationError, NotFoundError, OrchestratorError
from prefect_dstack.store import documents

__all__ = [
    "Known",
    "all_records",
    "delete_record",
    "find_record",
    "load_environment",
    "load_record",
    "new_record",
    "readable_records",
    "save_record",
]

Known = dict[str, tuple[Mapping[str, Any], ServiceRecord]]
"""Records by name, as they were written and as they were read."""
UNREADABLE = (OrchestratorError, ConfigurationError, ValidationError, KeyError, TypeError)


def new_record(name: str) -> ServiceRecord:
    """Return a new record.

    Args:
        name: The name of the service.

    Returns:
        A record without revisions; not saved.
    """
    return ServiceRecord(name=name, salt=secrets.token_hex(16))


def find_record(name: str) -> ServiceRecord | None:
    """Load the record of a service, if there is one.

    Args:
        name: The name of the service.

    Returns:
        The record, or None.

    Raises:
        OrchestratorError: If there is one that cannot be read.
    """
    found = documents.read(DstackService, name)
    if found is None:
        return None
    try:
        return read_record(found[1]["record"])
    except UNREADABLE as error:
        raise OrchestratorError(f"{name}: {_problem(error)}") from error


def load_record(name: str) -> ServiceRecord:
    """Load the record of a service.

    Args:
        name: The name of the service.

    Returns:
        The record.

    Raises:
        NotFoundError: If there is no such service.
    """
    record = find_record(name)
    if record is None:
        # Most names are known, and need no import of it.
        from prefect_dstack.store.schedules import all_schedules

        if any(schedule.name == name for schedule in all_schedules()):
            raise NotFoundError(
                f"{name}: is on a schedule, and was not deployed yet; prefect-dstack ps shows when it starts"
            )
        known = ", ".join(documents.names(DstackService)) or "none"
        raise NotFoundError(f"{name}: there is no such service; there are: {known}")
    return record


def load_environment(name: str, revision: int) -> dict[str, str]:
    """Load what a revision took from the environment of its deployer.

    Args:
        name: The name of the service.
        revision: The number of the revision.

    Returns:
        Values by name; secret.
    """
    found = documents.read(DstackService, name)
    return {} if found is None else dict(found[1]["environment"].get(str(revision), {}))


def save_record(record: ServiceRecord, environment: Mapping[str, str] | None = None) -> None:
    """Save a record. Only the holder of the service's limit may.

    Args:
        record: The record.
        environment: What the revision being deployed took from its deployer's environment; None: as before.
    """
    found = documents.read(DstackService, record.name)
    kept: dict[str, Any] = {} if found is None else found[1]["environment"]
    if environment is not None and record.deploying is not None:
        kept = {**kept, str(record.deploying.revision): dict(environment)}
    numbers = {str(revision.number) for revision in record.revisions}
    kept = {number: values for number, values in kept.items() if number in numbers}
    written = record.model_dump(mode="json")
    if found is None:
        documents.save(DstackService(record=written, environment=SecretDict(kept)), record.name)
    else:
        documents.replace(found[0], {**found[1], "record": written, "environment": kept})


def delete_record(name: str) -> None:
    """Forget a service.

    Args:
        name: The name of the service.
    """
    documents.delete(DstackService, name)


def all_records() -> list[ServiceRecord]:
    """Load the records of all services.

    Returns:
        The records, by name; those that cannot be read are left out.
    """
    return readable_records()[0]


def readable_records(known: Known | None = None) -> tuple[list[ServiceRecord], dict[str, str]]:
    """Load the records of all services.

    Args:
        known: What was read before, which is brought up to date: what has not changed is not parsed again.

    Returns:
        The records, by name; and why others cannot be read: they harm only who uses them.
    """
    before = {} if known is None else dict(known)
    present: Known = {}
    problems: dict[str, str] = {}
    for name, data in documents.data_of_all(DstackService).items():
        try:
            written = data["record"]
            same = name in before and before[name][0] == written
            present[name] = before[name] if same else (written, read_record(written))
        except UNREADABLE as error:
            problems[name] = _problem(error)
    if known is not None:
        known.clear()
        known |= present
    return [record for _, record in present.values()], problems


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"its record cannot be read: {what}; fix it in the block 'dstack-service', or delete the block"
