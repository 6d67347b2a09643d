"""What a gateway knows of one service."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from prefect_dstack.configurations.names import Domain, ModelName, Name, PathPrefix
from prefect_dstack.configurations.ports import Port
from prefect_dstack.configurations.traffic import Cors, RateLimit, Timeouts
from prefect_dstack.errors import ConflictError
from prefect_dstack.gateways.health import HealthCheck
from prefect_dstack.gateways.paths import normalised

__all__ = [
    "AcceptedToken",
    "Part",
    "Preview",
    "Route",
    "RouteModel",
    "RouteReplica",
    "TokenId",
    "refuse_conflict",
]

MEGABYTE = 1024 * 1024
FORMER_FIELDS = ("measured", "retry_idempotent")

ReplicaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
TokenId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
IpAddress = Annotated[
    str, Field(pattern=r"^[0-9A-Fa-f.:]+$"), AfterValidator(lambda value: str(ipaddress.ip_address(value)))
]


class Part(BaseModel):
    """A frozen part of a gateway's state that knows exactly its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class AcceptedToken(Part):
    """What a gateway knows of a token: never the token."""

    sha256: Digest = Field(description="The SHA-256 of the token, in lower-case hexadecimal.")
    expires_at: datetime | None = Field(default=None, description="When it ends; None: never.")

    @model_validator(mode="after")
    def _has_a_zone(self) -> Self:
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ValueError("expires_at needs a time zone")
        return self


class RouteReplica(Part):
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
    direct: bool = Field(
        default=True,
        description="Whether clients' requests go to it; a replica behind a router gets them from there.",
    )

    @property
    def effective_weight(self) -> int:
        """What HAProxy is told: 0 while it drains, and behind a router."""
        return self.weight if self.state == "ready" and self.direct else 0


class Preview(Part):
    """A replica of a new revision that answers only those who ask for the revision, and have a token."""

    revision: int = Field(ge=1, description="The number of the revision.")
    replica: RouteReplica = Field(description="The replica as the gateway reaches it.")


class RouteModel(Part):
    """The model that a service serves, as clients of all models of a gateway ask for it."""

    name: ModelName = Field(description="The name of the model.")
    prefix: PathPrefix = Field(default="/v1", description="The path prefix of its API in the service.")
    created: int = Field(ge=0, description="Since when the gateway has it, in seconds of Unix time.")


class Route(Part):
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
    tokens: dict[TokenId, AcceptedToken] = Field(
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
    hold_limit: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Requests that may wait at once while no replica is ready; 0: none, they are refused.",
    )
    hold_timeout: int = Field(
        default=60, ge=1, le=86_400, description="Seconds that a request waits for a replica to be ready."
    )
    access_log: bool = Field(
        default=False,
        description="Whether a line is written for each of its requests. It costs a quarter of the gateway's "
        "speed.",
    )
    compared: bool = Field(
        default=False,
        description="Whether replicas get exactly the share of their weight, as a canary needs.",
    )
    replicas: dict[ReplicaName, RouteReplica] = Field(
        default_factory=dict, description="Its replicas by name."
    )
    model: RouteModel | None = Field(
        default=None, description="The model that it serves by OpenAI's API; None: it serves none."
    )
    preview: Preview | None = Field(
        default=None, description="A revision that is evaluated or waits for approval; None: none is."
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Read routes that earlier versions have written."""
        if isinstance(value, dict):
            return {key: kept for key, kept in value.items() if key not in FORMER_FIELDS}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(name != replica.name for name, replica in self.replicas.items()):
            raise ValueError("a replica is listed under another name")
        if self.preview is not None and self.preview.replica.name in self.replicas:
            raise ValueError("a replica gets requests and is previewed at once")
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

    @property
    def model_path(self) -> str:
        """The path below which the API of its model is, as the service's own clients see it."""
        prefix = "" if self.model is None else self.model.prefix
        return self.path_prefix.rstrip("/") + prefix.rstrip("/")


def refuse_conflict(route: Route, other: Route) -> None:
    """Refuse a route that would take requests of another service.

    Args:
        route: The route to be added.
        other: A route of another service.

    Raises:
        ConflictError: If both would answer to the same host and path, own the same port, or serve a model
            of the same name.
    """
    if route.model is not None and other.model is not None and route.model.name == other.model.name:
        raise ConflictError(
            f"model '{route.model.name}' of the gateway belongs to service '{other.service}': give the model "
            f"of '{route.service}' another name, stop '{other.service}', or use another gateway"
        )
    if route.port != other.port:
        return
    elsewhere = f"another port of the gateway, as in 'port: {route.port + 1}:8000'"
    if bool(route.hosts) != bool(other.hosts):
        raise ConflictError(
            f"port {route.port} of the gateway is shared by host name with service '{other.service}': "
            f"give '{route.service}' a 'domain' too, or {elsewhere}"
            if other.hosts
            else f"port {route.port} of the gateway belongs to service '{other.service}', which answers "
            f"there for every host name: give '{other.service}' a 'domain' too, or '{route.service}' "
            f"{elsewhere}"
        )
    if route.path_prefix != other.path_prefix:
        return
    if not route.hosts:
        raise ConflictError(
            f"port {route.port} of the gateway belongs to service '{other.service}': give '{route.service}' "
            f"{elsewhere}, or both a 'domain'"
        )
    for host in sorted(set(route.hosts) & set(other.hosts)):
        raise ConflictError(
            f"{host}{route.path_prefix} on port {route.port} belongs to service '{other.service}', "
            "choose another domain or path_prefix"
        )
