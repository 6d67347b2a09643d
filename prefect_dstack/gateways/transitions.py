"""From one state of a gateway to another, as those who change it need them: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from prefect_dstack.domain.record import now
from prefect_dstack.domain.tokens import Token, of_gateway, of_service
from prefect_dstack.gateways import state as gateway_state
from prefect_dstack.gateways.state import GatewayState, Route

__all__ = ["EVEN_WEIGHT", "configured", "keeping_replicas", "with_tokens"]

EVEN_WEIGHT = 100
"""The weight of every replica, but for those of a canary and beside it."""


def configured(state: GatewayState, wanted: GatewayState) -> GatewayState:
    """Follow a gateway's configuration in what can change while it serves.

    Args:
        state: What it is.
        wanted: What its configuration says.

    Returns:
        The new state; routes move to another base port with their next deployment.
    """
    kept = {name: getattr(wanted, name) for name in ("domain", "https_port", "base_port")}
    if all(getattr(state, name) == value for name, value in kept.items()):
        return state
    routes = {
        name: {
            **dict(route),
            "https_redirect": route.https_redirect
            and wanted.https_port is not None
            and route.port == wanted.base_port,
        }
        for name, route in state.routes.items()
    }
    taken = state.models_port in (wanted.base_port, wanted.https_port)
    models_port = None if taken else state.models_port
    return GatewayState.model_validate({**dict(state), **kept, "routes": routes, "models_port": models_port})


def keeping_replicas(state: GatewayState, route: Route) -> Route:
    """Return a route with the replicas that the gateway has in it, at even weights, and its preview.

    Args:
        state: The state of the gateway.
        route: The settings that the route gets.

    Raises:
        NotFoundError: If the gateway has no route for the service.
    """
    known = state.route(route.service)
    replicas = {
        name: replica.model_copy(update={"checked": True, "weight": EVEN_WEIGHT})
        for name, replica in known.replicas.items()
    }
    return route.model_copy(update={"replicas": replicas, "preview": known.preview})


def with_tokens(state: GatewayState, tokens: Sequence[Token], today: datetime | None = None) -> GatewayState:
    """Set the valid tokens of a gateway and its routes.

    Args:
        state: The state of the gateway.
        tokens: All tokens, read while nobody else can change the gateway: the newest counts.
        today: The time; default: now.

    Returns:
        The new state.
    """
    today = today or now()
    routes = {
        name: route.model_copy(update={"tokens": _digests(of_service(tokens, name, today))})
        for name, route in state.routes.items()
    }
    return state.model_copy(
        update={"routes": routes, "tokens": _digests(of_gateway(tokens, state.name, today))}
    )


def _digests(tokens: Mapping[str, Token]) -> dict[str, gateway_state.AcceptedToken]:
    return {
        token.id: gateway_state.AcceptedToken(sha256=token.sha256, expires_at=token.expires_at)
        for token in tokens.values()
    }
