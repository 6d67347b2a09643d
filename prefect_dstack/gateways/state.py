"""The one desired state of a gateway; everything HAProxy is told derives from it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from prefect_dstack.configurations.names import Domain, Name, PathPrefix
from prefect_dstack.configurations.ports import Port
from prefect_dstack.configurations.traffic import Cors, RateLimit, Timeouts
from prefect_dstack.errors import ConflictError, NotFoundError
from prefect_dstack.gateways.health import HealthCheck
from prefect_dstack.gateways.paths import normalised

__all__ = ["GatewayState", "Route", "RouteReplica", "Token", "free_port"]

MEGABYTE = 1024 * 1024

ReplicaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
TokenId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
CertificateName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,252}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ChallengeToken = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
KeyAuthorization = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}\.[A-Za-z0-9_-]{1,200}$")]
IpAddress = Annotated[str, AfterValidator(lambda value: str(ipaddress.ip_address(value)))]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Token(_Part):
    """What a gateway knows of a token: never the token."""

    sha256: Digest = Field(description="The SHA-256 of the token, in lower-case hexadecimal.")
    expires_at: datetime | None = Field(default=None, description="When it ends; None: never.")

    @model_validator(mode="after")
    def _has_a_zone(self) -> Self:
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ValueError("expires_at needs a time zone")
        return self


class RouteReplica(_Part):
    """A replica that a gateway may send requests to."""

    name: ReplicaName = Field(description="The name of the replica, unique in its route.")
    address: IpAddress = Field(description="The IP address at which the gateway reaches it.")
    port: Port = Field(description="The port there.")
    weight: int = Field(
        default=100, ge=0, le=256, description="Its share of the requests, relative to others."
    )
    state: Literal["ready", "drain"] = Field(
        default="ready", description="`drain`: no new requests, those under way may finish."
    )
    checked: bool = Field(default=True, description="Whether failing checks take it out of traffic.")

    @property
    def effective_weight(self) -> int:
        """What HAProxy is told: 0 while it drains."""
        return 0 if self.state == "drain" else self.weight


class Route(_Part):
    """What a gateway knows of one service."""

    service: Name = Field(description="The name of the service.")
    hosts: tuple[Domain, ...] = Field(
        default=(),
        max_length=100,
        description="The host names that lead to it; none: every host of its port.",
    )
    port: Port = Field(description="The port that it is published on.")
    path_prefix: Annotated[PathPrefix, AfterValidator(normalised)] = Field(
        default="/", description="The path below which requests are its own; the longest that fits counts."
    )
    strip_prefix: bool = Field(
        default=False, description="Whether the replicas see paths without the prefix."
    )
    auth: bool = Field(default=False, description="Whether requests need a token.")
    forward_authorization: bool = Field(
        default=False, description="Whether the replicas see the `Authorization` header that was checked."
    )
    tokens: dict[TokenId, Token] = Field(
        default_factory=dict, description="The tokens that it accepts, by id."
    )
    rate_limits: tuple[RateLimit, ...] = Field(
        default=(), max_length=32, description="Limits on each client's requests; the longest prefix counts."
    )
    client_max_body_size: int | None = Field(
        default=64 * MEGABYTE, ge=0, description="The largest request body in bytes; None: any size."
    )
    timeouts: Timeouts = Field(default_factory=Timeouts, description="How long the gateway waits.")
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Requests that a replica works on at once; more wait at the gateway."
    )
    queue_timeout: int = Field(
        default=60, ge=1, le=86_400, description="Seconds that a request waits for a replica to have room."
    )
    cors: Cors | None = Field(default=None, description="Which web pages of other origins may call.")
    https_redirect: bool = Field(default=False, description="Whether plain HTTP is sent to HTTPS.")
    health_check: HealthCheck | None = Field(
        default=None, description="How replicas are checked; None: their port must accept a connection."
    )
    retry_idempotent: bool = Field(
        default=True,
        description="Whether GET, HEAD, OPTIONS, PUT and DELETE are sent again when a replica dies without "
        "an answer. Other methods are only sent again when they never reached a replica.",
    )
    replicas: dict[ReplicaName, RouteReplica] = Field(
        default_factory=dict, description="Its replicas by name."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(name != replica.name for name, replica in self.replicas.items()):
            raise ValueError("a replica is listed under another name")
        if self.strip_prefix and self.path_prefix == "/":
            raise ValueError("strip_prefix needs a path_prefix")
        if len(set(self.hosts)) != len(self.hosts):
            raise ValueError("a host is named twice")
        prefixes = [limit.prefix.rstrip("/") for limit in self.rate_limits]
        if len(set(prefixes)) != len(prefixes):
            raise ValueError("two rate limits have the same prefix")
        if any(not re.fullmatch(r"[A-Za-z0-9_-]+", limit.key.header or "-") for limit in self.rate_limits):
            raise ValueError("the header of a rate limit has letters, digits, hyphens and underscores")
        return self


class GatewayState(_Part):
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
    tokens: dict[TokenId, Token] = Field(
        default_factory=dict, description="Tokens that every service with `auth` accepts, by id."
    )
    challenges: dict[ChallengeToken, KeyAuthorization] = Field(
        default_factory=dict, description="Pending ACME HTTP-01 challenges and their answers."
    )
    routes: dict[Name, Route] = Field(default_factory=dict, description="The routes by service.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(name != route.service for name, route in self.routes.items()):
            raise ValueError("a route is listed under another service")
        if self.https_port is not None and self.https_port in {self.base_port, *self._ports()}:
            raise ValueError(f"port {self.https_port} cannot be both HTTP and HTTPS")
        for route in self.routes.values():
            if route.https_redirect and (self.https_port is None or route.port != self.base_port):
                raise ValueError(f"{route.service}: https_redirect needs HTTPS and the base port")
        return self

    def _ports(self) -> set[int]:
        return {route.port for route in self.routes.values()}

    @property
    def http_ports(self) -> list[int]:
        """The ports it listens on for plain HTTP; a local gateway only on those that services use."""
        return sorted(self._ports() | (set() if self.bind_address == "127.0.0.1" else {self.base_port}))

    def with_route(self, route: Route) -> GatewayState:
        """Add a service, or replace its route.

        Args:
            route: The whole route; its replicas and tokens too.

        Returns:
            The new state.

        Raises:
            ConflictError: If another service holds the host and path, or the port.
        """
        for other in self.routes.values():
            if other.service != route.service:
                _refuse_conflict(route, other)
        if route.port == self.https_port:
            raise ConflictError(
                f"port {route.port} is the HTTPS port of gateway '{self.name}', choose another port"
            )
        return self._with(routes={**self.routes, route.service: route})

    def without_route(self, service: str) -> GatewayState:
        """Remove a service; nothing happens if there is none of that name."""
        return self._with(routes={name: route for name, route in self.routes.items() if name != service})

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

    def draining(self, service: str, replica: str) -> GatewayState:
        """Give a replica no new requests."""
        return self._with_replica_fields(service, replica, state="drain")

    def with_weight(self, service: str, replica: str, weight: int) -> GatewayState:
        """Change a replica's share of the requests: 0 to 256, relative to the others' weights."""
        return self._with_replica_fields(service, replica, weight=weight)

    def with_token(self, service: str | None, token_id: str, token: Token) -> GatewayState:
        """Accept a token: at one service, or at every service that asks for tokens (None)."""
        if service is None:
            return self._with(tokens={**self.tokens, token_id: token})
        route = self.route(service)
        return self._with_fields(route, tokens={**route.tokens, token_id: token})

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
        """Name a certificate whose file the gateway holds."""
        return self if name in self.certificates else self._with(certificates=(*self.certificates, name))

    def without_certificate(self, name: str) -> GatewayState:
        """Name a certificate no longer."""
        return self._with(certificates=tuple(known for known in self.certificates if known != name))

    def _changed(
        self, service: str, change: Callable[[dict[str, RouteReplica]], dict[str, RouteReplica]]
    ) -> GatewayState:
        route = self.route(service)
        return self._with_fields(route, replicas=change(route.replicas))

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


def _refuse_conflict(route: Route, other: Route) -> None:
    if route.port != other.port:
        return
    if bool(route.hosts) != bool(other.hosts):
        raise ConflictError(
            f"port {route.port} of the gateway is shared by host name with service '{other.service}': "
            f"give '{route.service}' a host name too, or another port"
            if other.hosts
            else f"port {route.port} of the gateway belongs to service '{other.service}', choose another port"
        )
    if route.path_prefix != other.path_prefix:
        return
    if not route.hosts:
        raise ConflictError(
            f"port {route.port} of the gateway belongs to service '{other.service}', choose another port"
        )
    for host in sorted(set(route.hosts) & set(other.hosts)):
        raise ConflictError(
            f"{host}{route.path_prefix} on port {route.port} belongs to service '{other.service}', "
            "choose another domain or path_prefix"
        )


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
        if port in held or port == state.https_port:
            continue
        if port in listening or is_port_free(port):
            return port
    raise ConflictError(f"no port from {wanted} up is free on gateway '{state.name}'")
