"""A gateway with as many services as a test wants, and tokens for them."""

from __future__ import annotations

import hashlib
from datetime import datetime

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route, RouteReplica
from tests.gateways.application import Answer, Application, request


def token(secret: str, expires_at: datetime | None = None) -> AcceptedToken:
    return AcceptedToken(sha256=hashlib.sha256(secret.encode()).hexdigest(), expires_at=expires_at)


def with_token(state: GatewayState, service: str | None, token_id: str, it: AcceptedToken) -> GatewayState:
    """Accept a token: at one service, or at every service that asks for tokens (None)."""
    if service is None:
        return GatewayState.model_validate({**dict(state), "tokens": {**state.tokens, token_id: it}})
    route = state.route(service)
    return state.with_route(Route.model_validate({**dict(route), "tokens": {**route.tokens, token_id: it}}))


def replica(application: Application, **fields: object) -> RouteReplica:
    """A replica of a route for an application."""
    return RouteReplica.model_validate(
        {"name": application.name, "address": "127.0.0.1", "port": application.port, **fields}
    )


class World:
    """One gateway for the whole module, with services added as tests need them."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.port = gateway.state().base_port
        self.applications: list[Application] = []
        self.count = 0

    def service(self, **fields: object) -> tuple[str, Application]:
        """Publish a service under a host name of its own."""
        self.count += 1
        name = f"service-{self.count}"
        application = Application(name)
        self.applications.append(application)
        route = Route.model_validate(
            {
                "service": name,
                "hosts": [f"{name}.test"],
                "port": self.port,
                "replicas": {name: replica(application)},
                **fields,
            }
        )
        self.gateway.change(lambda state: state.with_route(route))
        return name, application

    def get(self, name: str, target: str = "/", **arguments: object) -> Answer:
        return request(self.port, target, host=f"{name}.test", **arguments)  # type: ignore[arg-type]
