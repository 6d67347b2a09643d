"""The infrastructure that the Prefect API describes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from prefect_dstack.blocks import (
    DstackController,
    DstackGateway,
    DstackRun,
    DstackService,
    DstackSshFleet,
)
from prefect_dstack.domain.tokens import Token
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.settings import settings
from prefect_dstack.store import documents, secrets, tokens
from prefect_dstack.store.aws import SLUG as AWS_SLUG
from prefect_dstack.store.bundle_storage import PrefectBundleStorage

if TYPE_CHECKING:
    from prefect_dstack.certificates.authority import Authority

__all__ = ["PrefectSources", "resolve_infrastructure", "seen_at_once"]


# What there is, and where it may be: read by everyone who looks at services.
RECORDS = tuple(kind.get_block_type_slug() for kind in (DstackService, DstackRun, DstackController))
PLACES = (*(kind.get_block_type_slug() for kind in (DstackGateway, DstackSshFleet)), AWS_SLUG)


def seen_at_once() -> AbstractContextManager[None]:
    """Read all records, gateways, fleets and accounts in one request, for those who ask within the block."""
    return documents.reading_together(*RECORDS, *PLACES)


class PrefectSources:
    """Reads blocks and secrets from the Prefect API, each type once; implements `Sources`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Whoever looks at them later need not ask again.
        self._data = {slug: found for slug, found in documents.read_together().items() if slug in PLACES}

    def block_data(self, slug: str) -> Mapping[str, Mapping[str, Any]]:
        """Read the blocks of one type, as they were when they were first asked for; see `Sources`."""
        with self._lock:
            if slug not in self._data:
                self._data[slug] = documents.data_of_slug(slug)
            return self._data[slug]

    def load_block(self, kind: type[Any], name: str) -> Any:
        """Load one block; see `Sources.load_block`."""
        return documents.load(kind, name)

    def secret(self, name: str) -> str:
        """Return the value of a secret; see `Sources.secret`."""
        return secrets.lookup(name)

    def tokens(self) -> Sequence[Token]:
        """Return all tokens, read anew; see `Sources.tokens`."""
        return tokens.all_tokens()

    def authority(self) -> Authority:
        """Return the certificate authority; see `Sources.authority`."""
        # cryptography takes its time to import, and most have no certificates of their own.
        from prefect_dstack.store.authority import authority

        return authority()


def resolve_infrastructure() -> Infrastructure:
    """Return what there is to deploy with, as the Prefect API knows it now.

    Call it once for a run, and pass on what it returns.
    """
    own = settings()
    storage = None if own.bundle_storage is None else PrefectBundleStorage(own.bundle_storage)
    return Infrastructure(PrefectSources(), own.home, own.local_gateway_port, storage)
