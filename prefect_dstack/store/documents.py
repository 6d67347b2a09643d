"""Block documents of the Prefect API, read and written from any thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any, TypeVar, cast
from uuid import UUID

from httpx import HTTPStatusError
from prefect.blocks.core import Block
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, Settings, temporary_settings

from prefect_dstack.store.clients import api_client

__all__ = [
    "create",
    "data_of_all",
    "data_of_slug",
    "delete",
    "load",
    "names",
    "read",
    "read_together",
    "reading_together",
    "replace",
    "save",
]

# The most that the API returns at once.
PAGE = 200

_together: ContextVar[Mapping[str, dict[str, dict[str, Any]]] | None] = ContextVar("_together", default=None)

SOON = (0.02, 0.05, 0.1, 0.2)

# The settings of the process, and what was made of them.
_not_retrying: tuple[Settings, Settings] | None = None

BlockT = TypeVar("BlockT", bound=Block)


def load(kind: type[BlockT], name: str) -> BlockT | None:
    """Load a block.

    Args:
        kind: Its class.
        name: Its name.

    Returns:
        The block; None if there is none of that name.
    """
    try:
        # `_sync` keeps it synchronous within flows that are not; it is missing from Prefect's annotations.
        return cast("BlockT", kind.load(name, _sync=True))  # type: ignore[call-arg]
    except ValueError as error:
        if "Unable to find block document" in str(error):
            return None
        raise


def read(kind: type[Block], name: str) -> tuple[UUID, dict[str, Any]] | None:
    """Read what a block holds, without the requests that loading its class takes.

    Args:
        kind: Its class.
        name: Its name.

    Returns:
        Its id, and its fields with secrets in clear; None if there is none of that name.
    """
    with api_client() as client:
        try:
            document = client.read_block_document_by_name(name, kind.get_block_type_slug())
        except ObjectNotFound:
            return None
        return document.id, dict(document.data)


def replace(identifier: UUID, data: dict[str, Any]) -> None:
    """Replace what a block holds.

    Args:
        identifier: Its id.
        data: Its fields, as JSON, with secrets in clear.
    """
    update = BlockDocumentUpdate(data=data, merge_existing_data=False)
    with api_client() as client:
        # SQLite refuses a change at once if another one came in between, and Prefect's client would wait for
        # two seconds before it tries again.
        with _without_retries():
            for pause in SOON:
                try:
                    client.update_block_document(identifier, update)
                except HTTPStatusError as error:
                    if error.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                        raise
                    time.sleep(pause)
                else:
                    return
        client.update_block_document(identifier, update)


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Have Prefect's client fail at the first error within the block."""
    global _not_retrying
    present = get_settings_context()
    known = _not_retrying
    if known is None or known[0] is not present.settings:
        # To copy the settings takes longer than a request, and a controller would do it every few seconds.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}) as changed:
            known = _not_retrying = present.settings, changed
    with SettingsContext(profile=present.profile, settings=known[1]):
        yield


def save(block: Block, name: str) -> None:
    """Save a block, in the place of one of that name.

    Args:
        block: The block.
        name: Its name.
    """
    block.save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]


def create(block: Block, name: str) -> bool:
    """Save a block, unless there is one of that name.

    Args:
        block: The block.
        name: Its name.

    Returns:
        Whether it was saved.
    """
    try:
        block.save(name, _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        if "already in use" in str(error):
            return False
        raise
    return True


def delete(kind: type[Block], name: str) -> None:
    """Delete a block.

    Args:
        kind: Its class.
        name: Its name.
    """
    kind.delete(name, _sync=True)  # type: ignore[call-arg]


def names(kind: type[Block]) -> list[str]:
    """List the blocks of one kind.

    Args:
        kind: Their class.

    Returns:
        Their names, sorted.
    """
    return [document["name"] for document in _documents([kind.get_block_type_slug()])]


def data_of_all(kind: type[Block]) -> Mapping[str, dict[str, Any]]:
    """Read what the blocks of one kind hold.

    Args:
        kind: Their class.

    Returns:
        Their fields by their names; secret ones obscured.
    """
    return data_of_slug(kind.get_block_type_slug())


def data_of_slug(slug: str) -> Mapping[str, dict[str, Any]]:
    """Read what the blocks of one kind hold, whose class need not be imported.

    Args:
        slug: That of their block type.

    Returns:
        Their fields by their names; secret ones obscured.
    """
    together = read_together()
    if slug in together:
        return together[slug]
    return {document["name"]: document["data"] for document in _documents([slug])}


@contextlib.contextmanager
def reading_together(*slugs: str) -> Iterator[None]:
    """Read the blocks of several kinds in one request; within the block, they are as they were at its begin.

    Args:
        *slugs: Those of their block types.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {slug: {} for slug in slugs}
    for document in _documents(slugs):
        found[document["block_type"]["slug"]][document["name"]] = document["data"]
    token = _together.set(found)
    try:
        yield
    finally:
        _together.reset(token)


def read_together() -> Mapping[str, Mapping[str, dict[str, Any]]]:
    """Return what `reading_together` has read, by the slugs of block types; nothing outside of it."""
    return _together.get() or {}


def _documents(slugs: Sequence[str]) -> list[dict[str, Any]]:
    with api_client() as client:
        found: list[dict[str, Any]] = []
        while True:
            page = client.request(
                "POST",
                "/block_documents/filter",
                json={
                    "block_types": {"slug": {"any_": list(slugs)}},
                    "offset": len(found),
                    "limit": PAGE,
                    "sort": "NAME_ASC",
                },
            ).json()
            found += page
            if len(page) < PAGE:
                return found
