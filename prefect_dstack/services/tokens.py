"""Tokens that open services: made, listed and revoked.

These are no Prefect flows: what a flow returns may be kept by Prefect, and a token must not be.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta

from prefect_dstack.api import connected
from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.domain.record import now
from prefect_dstack.domain.tokens import NewToken, Token, expiry, new_token, token_id
from prefect_dstack.errors import ConfigurationError, GatewayError, NotFoundError, PrefectDstackError
from prefect_dstack.gateways.choice import LOCAL
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.gateways.transitions import with_tokens
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.location import is_elsewhere, refuse_elsewhere, refuse_gateway_elsewhere
from prefect_dstack.services.preparation import this_user
from prefect_dstack.store import tokens as store
from prefect_dstack.store.records import load_record, readable_records
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = [
    "acreate_token",
    "alist_tokens",
    "arevoke_token",
    "create_token",
    "list_tokens",
    "revoke_token",
]


@connected
def create_token(
    service: str | None = None, gateway: str | None = None, expires: str | timedelta | None = None
) -> NewToken:
    """Create a token; it works as soon as this returns.

    The token is in what is returned and nowhere else: only its SHA-256 is kept, and sent to gateways.
    It outlives new revisions, a stop, and the gateway.

    Args:
        service: The service that it opens; None: all services.
        gateway: The gateway whose services it opens, if it is not for one service; None: those of all.
        expires: How long it is good for, such as `30d`; None: for ever.

    Returns:
        The token; `value.get_secret_value()` is what clients send.

    Raises:
        NotFoundError: If there is no such service or gateway.
        ConfigurationError: If what is asked makes no sense.
        ConflictError: If the service or gateway can only be changed on another machine.
        GatewayError: If a gateway cannot be told.

    Example:
        ```python
        from openai import OpenAI
        from prefect_dstack import create_token, deploy_service

        endpoint = deploy_service("llm.dstack.yml")
        token = create_token("llm", expires="30d")
        client = OpenAI(base_url=endpoint.openai_base_url, api_key=token.value.get_secret_value())
        ```
    """
    moment = now()
    ends = expiry(expires, moment)
    if service is not None and gateway is not None:
        raise ConfigurationError("is for one service or for a gateway, not both; leave one out", key="token")
    infrastructure = resolve_infrastructure()
    if service is not None:
        refuse_elsewhere(load_record(service), infrastructure.here, "create its tokens")
    if gateway is not None and gateway not in infrastructure.gateway_names:
        known = ", ".join([*infrastructure.configured_gateways, LOCAL])
        raise NotFoundError(f"{gateway}: there is no such gateway; there are: {known}")
    if gateway is not None:
        refuse_gateway_elsewhere(infrastructure.gateway(gateway), infrastructure.here, "create its tokens")
    token = new_token(
        moment,
        service=service,
        gateway=gateway,
        expires_at=ends,
        created_by=this_user(),
    )
    store.save_token(token)
    problems = _tell_gateways(infrastructure, token, _refreshed)
    if problems:
        revoke_token(token.id)
        raise GatewayError(f"no token was made: {'; '.join(problems)}")
    return token


@connected
def list_tokens(service: str | None = None, gateway: str | None = None) -> list[Token]:
    """List all tokens, including expired ones.

    Args:
        service: Only those that were made for this service.
        gateway: Only those that were made for this gateway.

    Returns:
        The tokens, the oldest first; never their values.
    """
    return [
        token
        for token in store.all_tokens()
        if service in (None, token.service) and gateway in (None, token.gateway)
    ]


@connected
def revoke_token(token: str) -> Token:
    """Revoke a token; it is refused by the time this returns.

    Args:
        token: Its id; or the token itself, as one finds it where it leaked.

    Returns:
        What was known of it.

    Raises:
        NotFoundError: If there is no such token.
        GatewayError: If a gateway cannot be told; do it again when that gateway is back.
    """
    known = store.find_token(token_id(token))
    if known is None:
        raise NotFoundError("there is no such token; prefect-dstack token list shows their ids")
    infrastructure = resolve_infrastructure()
    # First the gateways, because that is what counts; once more when no record can bring it back to them.
    _tell_gateways(infrastructure, known, lambda state: _without(state, known))
    store.save_token(known.model_copy(update={"revoked": True}))
    problems = _tell_gateways(infrastructure, known, _refreshed) + _out_of_reach(infrastructure, known)
    if problems:
        raise GatewayError(f"token {known.id} still works, revoke it again later: {'; '.join(problems)}")
    store.delete_token(known.id)
    return known


acreate_token = asynchronous(create_token)
alist_tokens = asynchronous(list_tokens)
arevoke_token = asynchronous(revoke_token)


def _refreshed(state: GatewayState) -> GatewayState:
    return with_tokens(state, store.all_tokens())


def _tell_gateways(
    infrastructure: Infrastructure, token: Token, transition: Callable[[GatewayState], GatewayState]
) -> list[str]:
    """Change the gateways that may have routes that the token opens, all at once.

    Returns:
        Why which of them could not be told.
    """

    def tell(name: str) -> str | None:
        try:
            gateway = infrastructure.gateway(name)
            if gateway.state() is not None:
                gateway.control.change(transition)
        except PrefectDstackError as error:
            return str(error)
        return None

    names = [name for name in infrastructure.gateway_names if token.gateway in (None, name)]
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as executor:
        # What Prefect knows of this run is in the context of this thread.
        told = [executor.submit(copy_context().run, tell, name) for name in names]
        return [problem for future in told if (problem := future.result()) is not None]


def _out_of_reach(infrastructure: Infrastructure, token: Token) -> list[str]:
    """Return why which services that the token opens cannot be told here: they are on other machines."""
    return [
        f"{record.name} runs on {record.location}: revoke it there too"
        for record in readable_records()[0]
        if is_elsewhere(record, infrastructure.here)
        and record.active is not None
        and token.service in (None, record.name)
        and token.gateway in (None, record.gateway)
    ]


def _without(state: GatewayState, token: Token) -> GatewayState:
    if token.service is not None and token.service not in state.routes:
        return state
    return state.without_token(token.service, token.id)
