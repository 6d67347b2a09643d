"""Tokens: kept as blocks, one each, and told to the gateways as digests."""

from __future__ import annotations

from prefect_dstack.blocks import DstackToken
from prefect_dstack.domain.record import now
from prefect_dstack.domain.tokens import Token, of_gateway, of_service
from prefect_dstack.gateways import state as gateway_state
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.tasks import documents

__all__ = [
    "all_tokens",
    "delete_token",
    "find_token",
    "has_token",
    "save_token",
    "with_tokens",
]


def all_tokens() -> list[Token]:
    """Load what is known of all tokens.

    Returns:
        The tokens, the oldest first.
    """
    found = [Token.model_validate(data["token"]) for data in documents.data_of_all(DstackToken).values()]
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
    """Tell whether any token opens a service.

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


def with_tokens(state: GatewayState) -> GatewayState:
    """Give a gateway and its routes the tokens that are good today; a transition for `Gateway.change`.

    They are read while nobody else can change the gateway, so that the last word is the newest.

    Args:
        state: The state of the gateway.

    Returns:
        The new state.
    """
    tokens, today = all_tokens(), now()
    routes = {
        name: route.model_copy(update={"tokens": _digests(of_service(tokens, name, today))})
        for name, route in state.routes.items()
    }
    return state.model_copy(
        update={"routes": routes, "tokens": _digests(of_gateway(tokens, state.name, today))}
    )


def _digests(tokens: dict[str, Token]) -> dict[str, gateway_state.Token]:
    return {
        token.id: gateway_state.Token(sha256=token.sha256, expires_at=token.expires_at)
        for token in tokens.values()
    }
