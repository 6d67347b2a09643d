"""Where infrastructure is described: what has to be read, whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prefect_dstack.domain.tokens import Token

if TYPE_CHECKING:
    from prefect_dstack.certificates.authority import Authority

__all__ = ["BackendContext", "DraftedSources", "Sources"]


BlockT = TypeVar("BlockT")


class Sources(Protocol):
    """Reads what users and flows have saved. The Prefect API implements it; tests keep it in memory."""

    def block_data(self, slug: str) -> Mapping[str, Mapping[str, Any]]:
        """Read the fields of all blocks of one type, by block name; secret fields are obscured.

        Args:
            slug: The slug of the block type.
        """
        ...

    def load_block(self, kind: type[BlockT], name: str) -> BlockT | None:
        """Load one block as an object; None if there is none of that name.

        Args:
            kind: The class of the block.
            name: The name of the block.
        """
        ...

    def secret(self, name: str) -> str:
        """Return the value of a secret.

        Args:
            name: As in `${{ secrets.NAME }}`.

        Raises:
            NotFoundError: If there is no such secret.
        """
        ...

    def tokens(self) -> Sequence[Token]:
        """Return all tokens that open services, the oldest first."""
        ...

    def authority(self) -> Authority:
        """Return the certificate authority for self-signed certificates."""
        ...


class DraftedSources:
    """Sources with one block more, or another content of one, that was not saved yet; implements `Sources`.

    Args:
        sources: All else.
        slug: The slug of the block type.
        name: The name of the block.
        data: Its fields.
    """

    def __init__(self, sources: Sources, slug: str, name: str, data: Mapping[str, Any]) -> None:
        self._sources, self._slug, self._name, self._data = sources, slug, name, data

    def block_data(self, slug: str) -> Mapping[str, Mapping[str, Any]]:
        """Read the blocks of one type, the drafted one among them."""
        saved = self._sources.block_data(slug)
        return {**saved, self._name: self._data} if slug == self._slug else saved

    def load_block(self, kind: type[BlockT], name: str) -> BlockT | None:
        """Load one block."""
        return self._sources.load_block(kind, name)

    def secret(self, name: str) -> str:
        """Return the value of a secret."""
        return self._sources.secret(name)

    def tokens(self) -> Sequence[Token]:
        """Return all tokens."""
        return self._sources.tokens()

    def authority(self) -> Authority:
        """Return the certificate authority."""
        return self._sources.authority()


@dataclass(frozen=True)
class BackendContext:
    """What the factory of a backend may use.

    Attributes:
        home: The home directory of prefect-dstack on this machine.
        gateway_port: The base port of gateways on this machine.
        sources: What users have saved: blocks and secrets.
    """

    home: Path
    gateway_port: int
    sources: Sources
