"""The one desired state of a gateway; everything HAProxy is told derives from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefect_dstack.configurations.names import Domain, Name
from prefect_dstack.configurations.ports import Port
from prefect_dstack.errors import ConflictError, NotFoundError
from prefect_dstack.gateways.route import (
    AcceptedToken,
    Part,
    Preview,
    Route,
    RouteModel,
    RouteReplica,
    TokenId,
    refuse_conflict,
)

__all__ = ["AcceptedToken", "GatewayState", "Route", "RouteModel", "RouteReplica", "free_port"]

MODELS_PORT_ABOVE = 1000
"""By how much the port of all models is above the base port, if that one is free."""

CertificateName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,252}$")]
ChallengeToken = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
KeyAuthorization = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}\.[A-Za-z0-9_-]{1,200}$")]


class GatewayState(Part):
    """All that a gateway is to be. Transitions return a new state.

    Example:
        >>> state = GatewayState(name="local", base_port=8080)
        >>> state = state.with_route(Route(service="hello", port=8080))
        >>> list(state.routes)
        ['hello']
    """

    version: Literal[1] = 1
    name: Name = Field(description="The name of the gateway.")
    bind_address: Literal["127.0.0.1", "*"] = Field(
        default="127.0.0.1", description="`127.0.0.1`: only this machine can reach it. `*`: everybody."
    )
    base_port: Port = Field(default=8080, description="The port of services that name none.")
    https_port: Port | None = Field(default=None, description="The port of HTTPS; None: no HTTPS.")
    domain: Domain | None = Field(default=None, description="The domain below which services have names.")
    certificates: tuple[CertificateName, ...] = Field(
        default=(),
        description="Names of the certificates it holds; the first answers clients that name no host.",
    )
    tokens: dict[TokenId, AcceptedToken] = Field(
        default_factory=dict, description="Tokens that every service with `auth` accepts, by id."
    )
    challenges: dict[ChallengeToken, KeyAuthorization] = Field(
        default_factory=dict, description="Pending ACME HTTP-01 challenges and their answers."
    )
    models_port: Port | None = Field(
        default=None,
        description="The port of all models, by HTTPS if the gateway has it; None: it has no models, or "
        "a host name for them.",
    )
    routes: dict[Name, Route] = Field(default_factory=dict, description="The routes by service.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(name != route.service for name, route in self.routes.items()):
            raise ValueError("a route is listed under another service")
        if self.https_port is not None and self.https_port in {self.base_port, *self._ports()}:
            raise ValueError(f"port {self.https_port} cannot be both HTTP and HTTPS")
        if self.models_port is not None and self.models_port in {self.https_port, *self._ports()}:
            raise ValueError(f"port {self.models_port} cannot be that of models and of something else")
        for route in self.routes.values():
            if route.https_redirect and (self.https_port is None or route.port != self.base_port):
                raise ValueError(f"{route.service}: https_redirect needs HTTPS and the base port")
        return self

    def _ports(self) -> set[int]:
        return {route.port for route in self.routes.values()}

    @property
    def http_ports(self) -> list[int]:
        """The ports it listens on for plain HTTP; a local gateway only on those that services use."""
        ports = self._ports() | (set() if self.bind_address == "127.0.0.1" else {self.base_port})
        if self.models_port is not None and self.https_port is None:
            ports.add(self.models_port)
        if self.models_host is not None:
            ports.add(self.base_port)
        return sorted(ports)

    @property
    def https_ports(self) -> list[int]:
        """The ports it listens on for HTTPS."""
        if self.https_port is None:
            return []
        return [self.https_port, *([] if self.models_port is None else [self.models_port])]

    @property
    def models(self) -> list[tuple[Route, RouteModel]]:
        """The models that services of it serve."""
        return [(route, route.model) for route in self.routes.values() if route.model is not None]

    @property
    def models_preflight(self) -> Route | None:
        """The route that answers what pages ask before they call a model, which names none yet."""
        routes = [route for route, _ in self.models]
        alike = all(route.cors is not None and route.cors == routes[0].cors for route in routes)
        return routes[0] if routes and alike else None

    @property
    def models_host(self) -> str | None:
        """The host name of all models; None without a domain or a model, or if a service has it already."""
        if self.domain is None or not self.models:
            return None
        host = f"gateway.{self.domain}"
        return None if any(host in route.hosts for route in self.routes.values()) else host

    def with_route(self, route: Route) -> GatewayState:
        """Add a service, or replace its route.

        Args:
            route: The whole route; its replicas and tokens too.

        Returns:
            The new state.

        Raises:
            ConflictError: If another service holds the host and path, the port, or the model.
        """
        for other in self.routes.values():
            if other.service != route.service:
                refuse_conflict(route, other)
        if route.port == self.https_port:
            raise ConflictError(
                f"port {route.port} is the HTTPS port of gateway '{self.name}', choose another port"
            )
        if route.port == self.models_port:
            raise ConflictError(
                f"port {route.port} of gateway '{self.name}' is that of its models, choose another port"
            )
        known = self.routes.get(route.service)
        if self.models_host in route.hosts and (known is None or known.hosts != route.hosts):
            raise ConflictError(
                f"{self.models_host} is where gateway '{self.name}' has its models, "
                "choose another domain or name"
            )
        return self._with(routes={**self.routes, route.service: route})

    def without_route(self, service: str) -> GatewayState:
        """Remove a service; nothing happens if there is none of that name."""
        return self._with(routes={name: route for name, route in self.routes.items() if name != service})

    def with_models_port(self, is_port_free: Callable[[int], bool]) -> GatewayState:
        """Return the state with a port for its models if they need one: they have no host name.

        Args:
            is_port_free: Tells whether no other program on the gateway's machine listens on a port.

        Raises:
            ConflictError: If no port is free.
        """
        if not self.models or self.domain is not None:
            return self if self.models_port is None else self._with(models_port=None)
        if self.models_port is not None:
            return self
        held = {self.base_port, self.https_port, *self._ports()}
        wanted = self.base_port + MODELS_PORT_ABOVE
        for port in (*range(wanted, 65536), *range(1024, min(wanted, 65536))):
            if port not in held and is_port_free(port):
                return self._with(models_port=port)
        raise ConflictError(f"no port is free for the models of gateway '{self.name}'")

    def route(self, service: str) -> Route:
        """Get a route.

        Raises:
            NotFoundError: If the gateway has none for the service.
        """
        try:
            return self.routes[service]
        except KeyError:
            raise NotFoundError(f"gateway '{self.name}' has no route for service '{service}'") from None

    def with_replica(self, service: str, replica: RouteReplica) -> GatewayState:
        """Add a replica to a route, or replace the one of that name."""
        return self._changed(service, lambda replicas: {**replicas, replica.name: replica})

    def without_replica(self, service: str, replica: str) -> GatewayState:
        """Remove a replica from a route; nothing happens if it is not there."""
        return self._changed(
            service, lambda replicas: {name: kept for name, kept in replicas.items() if name != replica}
        )

    def with_preview(self, service: str, preview: Preview | None) -> GatewayState:
        """Let those with a token ask a revision that gets no requests; None: none any more."""
        return self._with_fields(self.route(service), preview=preview)

    def draining(self, service: str, replica: str) -> GatewayState:
        """Send no new requests to a replica."""
        return self._with_replica_fields(service, replica, state="drain")

    def with_weight(self, service: str, replica: str, weight: int) -> GatewayState:
        """Change a replica's share of the requests: 0 to 256, relative to the others' weights."""
        return self._with_replica_fields(service, replica, weight=weight)

    def comparing(self, service: str, *, compared: bool) -> GatewayState:
        """Begin or end to compare a service's replicas, as a canary needs; see `Route.compared`."""
        return self._with_fields(self.route(service), compared=compared)

    def without_token(self, service: str | None, token_id: str) -> GatewayState:
        """Accept a token no longer; nothing happens if it is not known."""
        if service is None:
            return self._with(
                tokens={known: token for known, token in self.tokens.items() if known != token_id}
            )
        route = self.route(service)
        kept = {known: token for known, token in route.tokens.items() if known != token_id}
        return self._with_fields(route, tokens=kept)

    def with_challenge(self, token: str, key_authorization: str) -> GatewayState:
        """Answer an ACME HTTP-01 challenge."""
        return self._with(challenges={**self.challenges, token: key_authorization})

    def without_challenge(self, token: str) -> GatewayState:
        """Answer an ACME HTTP-01 challenge no longer."""
        return self._with(challenges={known: it for known, it in self.challenges.items() if known != token})

    def with_certificate(self, name: str) -> GatewayState:
        """Add a certificate whose file the gateway holds."""
        return self if name in self.certificates else self._with(certificates=(*self.certificates, name))

    def _changed(
        self, service: str, change: Callable[[dict[str, RouteReplica]], dict[str, RouteReplica]]
    ) -> GatewayState:
        route = self.route(service)
        replicas, preview = change(route.replicas), route.preview
        if preview is not None and preview.replica.name in replicas:
            preview = None  # what gets requests is no preview any more
        return self._with_fields(route, replicas=replicas, preview=preview)

    def _with_replica_fields(self, service: str, name: str, **fields: object) -> GatewayState:
        replica = self.route(service).replicas.get(name)
        if replica is None:
            raise NotFoundError(f"service '{service}' has no replica '{name}' at gateway '{self.name}'")
        return self.with_replica(service, RouteReplica.model_validate({**dict(replica), **fields}))

    def _with_fields(self, route: Route, **fields: object) -> GatewayState:
        return self._with(
            routes={**self.routes, route.service: Route.model_validate({**dict(route), **fields})}
        )

    def _with(self, **fields: object) -> GatewayState:
        return GatewayState.model_validate({**dict(self), **fields})


def free_port(
    state: GatewayState,
    service: str,
    wanted: int,
    is_port_free: Callable[[int], bool],
    path_prefix: str = "/",
) -> int:
    """Choose the port of a service that has no host name.

    Args:
        state: The state of the gateway.
        service: The service; a port that it holds already is its own.
        wanted: The port that it would best have.
        is_port_free: Tells whether no other program on the gateway's machine listens on a port.
        path_prefix: The service's; services with other prefixes may share its port.

    Returns:
        `wanted`, or the next port after it that neither another service nor another program holds.

    Raises:
        ConflictError: If there is none.
    """
    held = {
        route.port
        for route in state.routes.values()
        if route.service != service and (route.hosts or route.path_prefix == path_prefix)
    }
    listening = set(state.http_ports)
    for port in range(wanted, 65536):
        if port in held or port in (state.https_port, state.models_port):
            continue
        if port in listening or is_port_free(port):
            return port
    raise ConflictError(f"no port from {wanted} up is free on gateway '{state.name}'")
