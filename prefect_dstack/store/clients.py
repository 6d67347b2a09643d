"""Clients of the Prefect API: one for each call, or one that all calls of a command share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from prefect.client.orchestration import SyncPrefectClient, get_client

__all__ = ["api_client", "sharing_client"]

_shared: ContextVar[SyncPrefectClient | None] = ContextVar("_shared", default=None)


@contextlib.contextmanager
def api_client() -> Iterator[SyncPrefectClient]:
    """Yield a client: the shared one where there is one, else one of the caller's own."""
    shared = _shared.get()
    if shared is not None:
        yield shared
        return
    with get_client(sync_client=True) as client:
        yield client


@contextlib.contextmanager
def sharing_client() -> Iterator[None]:
    """Share one client among all calls within the block, and in threads that copy its context.

    Each client reads the certificates of this machine and asks the API for a token of its own first, which
    takes longer than a call.
    """
    with get_client(sync_client=True) as client:
        token = _shared.set(client)
        try:
            yield
        finally:
            _shared.reset(token)
