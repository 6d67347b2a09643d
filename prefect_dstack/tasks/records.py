"""Records of services, kept as blocks by the Prefect API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import BlockDocumentFilter, BlockTypeFilter, BlockTypeFilterSlug
from prefect.types import SecretDict

from prefect_dstack.blocks import DstackService
from prefect_dstack.errors import NotFoundError
from prefect_dstack.services.record import ServiceRecord

__all__ = ["block_names", "delete_record", "find_record", "load_environment", "load_record", "new_record", "save_record"]


def new_record(name: str) -> ServiceRecord:
    """Begin the record of a service.

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
    """
    block = _load(name)
    return None if block is None else block.read()


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
        known = ", ".join(block_names(DstackService)) or "none"
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
    block = _load(name)
    values = {} if block is None else block.environment.get_secret_value()
    return dict(values.get(str(revision), {}))


def save_record(record: ServiceRecord, environment: Mapping[str, str] | None = None) -> None:
    """Save a record. Only the holder of the service's limit may.

    Args:
        record: The record.
        environment: What the revision being deployed took from the environment of its deployer; None: as before.
    """
    block = _load(record.name)
    kept: dict[str, Any] = {} if block is None else block.environment.get_secret_value()
    if environment is not None and record.deploying is not None:
        kept = {**kept, str(record.deploying.revision): dict(environment)}
    numbers = {str(revision.number) for revision in record.revisions}
    DstackService(
        record=record.model_dump(mode="json"),
        environment=SecretDict({number: values for number, values in kept.items() if number in numbers}),
    ).save(record.name, overwrite=True, _sync=True)


def delete_record(name: str) -> None:
    """Forget a service.

    Args:
        name: The name of the service.
    """
    DstackService.delete(f"dstack-service/{name}", _sync=True)


def block_names(kind: type) -> list[str]:
    """List the documents of one kind of block.

    Args:
        kind: The block's class.

    Returns:
        Their names, sorted.
    """
    with get_client(sync_client=True) as client:
        documents = client.request(
            "POST",
            "/block_documents/filter",
            json={
                "block_types": BlockTypeFilter(
                    slug=BlockTypeFilterSlug(any_=[kind.get_block_type_slug()])
                ).model_dump(mode="json"),
                "block_documents": BlockDocumentFilter().model_dump(mode="json"),
            },
        )
        return sorted(document["name"] for document in documents.json())


def _load(name: str) -> DstackService | None:
    try:
        return DstackService.load(name, _sync=True)
    except ValueError as error:
        if "Unable to find block document" in str(error):
            return None
        raise
