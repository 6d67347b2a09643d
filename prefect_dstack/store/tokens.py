"""Tokens, kept as blocks, one each."""

from __future__ import annotations

import contextlib

from pydantic import ValidationError

from prefect_dstack.blocks import DstackToken
from prefect_dstack.domain.record import now
from prefect_dstack.domain.tokens import Token, of_gateway, of_service
from prefect_dstack.store import documents

__all__ = [
    "all_tokens",
    "delete_token",
    "find_token",
    "has_token",
    "save_token",
]


def all_tokens() -> list[Token]:
    """Load what is known of all tokens.

    Returns:
        The tokens, the oldest first; those that cannot be read are left out.
    """
    found = []
    for data in documents.data_of_all(DstackToken).values():
        # One that cannot be read opens nothing, and harms no other.
        with contextlib.suppress(ValidationError, KeyError):
            found.append(Token.model_validate(data["token"]))
    return sorted(found, key=lambda token: token.created_at)


def find_token(token_id: str) -> Token | None:
    """Load what is known of one token.

    Args:
        token_id: Its id.

    Returns:
        The token, or None.
    """
    return next((token for token in all_tokens() if token.id == token_id), None)


def has_token(gateway: str, service: str) -> bool:
    """Return whether any token opens a service.

    Args:
        gateway: The gateway in front of it.
        service: The service.

    Returns:
        Whether there is one that is valid now.
    """
    tokens, today = all_tokens(), now()
    return bool(of_service(tokens, service, today) or of_gateway(tokens, gateway, today))


def save_token(token: Token) -> None:
    """Keep what is known of a token, without its value.

    Args:
        token: The token.
    """
    fields = token.model_dump(mode="json", include=set(Token.model_fields))
    documents.save(DstackToken(token=fields), token.id)


def delete_token(token_id: str) -> None:
    """Forget a token.

    Args:
        token_id: Its id.
    """
    documents.delete(DstackToken, token_id)
