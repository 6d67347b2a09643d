"""How a service's requests are checked, limited and answered at the gateway."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import (
    HeaderName,
    HeaderValue,
    HttpMethod,
    Origin,
    RequestTarget,
    RoutePrefix,
    Text,
)
from prefect_dstack.configurations.scalars import Duration, Number, Positive, Whole


class Header(Model):
    """An HTTP header of a probe."""

    name: HeaderName = Field(description="The name of the header.")
    value: HeaderValue = Field(
        repr=False, description="The value of the header, one line, perhaps a secret reference."
    )


def _parse_headers(value: Any) -> Any:
    if isinstance(value, dict) and not value.keys() <= {"name", "value"}:
        return [{"name": name, "value": content} for name, content in value.items()]
    return value


Headers = Annotated[
    tuple[Header, ...],
    BeforeValidator(_parse_headers, json_schema_input_type=list[Header] | dict[str, str]),
    Field(max_length=16),
]


class Probe(Model):
    """A check of a replica: a request that must be answered, or a port that must accept connections."""

    type: Literal["http", "tcp"] = Field(default="http", description="The kind of check, http or tcp.")
    url: RequestTarget = Field(default="/", description="The path to request, perhaps with a query.")
    method: HttpMethod = Field(default="get", description="The HTTP method of the request.")
    headers: Headers = Field(default=(), description="The headers to send, at most 16.")
    body: Annotated[Text, Field(min_length=1, max_length=2048)] | None = Field(
        default=None, repr=False, description="The body to send, with a method that has one."
    )
    timeout: Annotated[Duration, Field(ge=1)] = Field(default=10, description="How long an answer may take.")
    interval: Annotated[Duration, Field(ge=1)] = Field(
        default=15, description="The time from the end of one check to the start of the next."
    )
    ready_after: Positive = Field(
        default=1, description="The number of successful checks in a row after which a replica is ready."
    )
    until_ready: bool = Field(
        default=False, description="Whether to check no more once the replica is ready."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type == "tcp":
            for key in ("url", "method", "headers", "body"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    refuse("means nothing to a tcp probe; remove it, or use type: http", key=key)
        if self.body is not None and self.method in ("get", "head"):
            refuse(f"cannot be sent with method {self.method}; use method: post", key="body")
        return self


class RateLimitKey(Model):
    """What a rate limit counts by, written as `ip`, or a mapping of type and header."""

    shorthand = ("string",)

    type: Annotated[
        Literal["ip_address", "header"],
        BeforeValidator(
            lambda value: "ip_address" if value == "ip" else value,
            json_schema_input_type=Literal["ip_address", "ip", "header"],
        ),
    ] = Field(
        default="ip_address", description="What requests are counted by: ip_address (or ip), or header."
    )
    header: HeaderName | None = Field(default=None, description="The header whose values are counted by.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "header" and self.header is None:
            refuse("is missing; add 'header: X-Api-Key', the header to count by", key="header")
        if self.type == "ip_address" and self.header is not None:
            refuse("needs 'type: header' beside it", key="header")
        return self


class RateLimit(Model):
    """A limit on the requests of each client below a path."""

    prefix: RoutePrefix = Field(
        default="/", description="The path prefix that is limited; the longest that fits counts."
    )
    key: RateLimitKey = Field(
        default_factory=RateLimitKey,
        description="What requests are counted by; the client's address if not given.",
    )
    rps: Annotated[Number, Field(ge=1 / 60, le=1_000_000)] = Field(
        description="The requests per second that are let through."
    )
    burst: Annotated[Whole, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="The requests that may come at once beyond the rate."
    )


class Auth(Model):
    """Whether requests need a token, written as true, false or a mapping."""

    shorthand = ("boolean",)

    enabled: bool = Field(default=True, description="Whether requests need a token.")
    forward: bool = Field(default=False, description="Whether the application sees the Authorization header.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        truth = parse_truth(value)
        if isinstance(truth, bool):
            return {"enabled": truth}
        if not isinstance(value, (dict, Auth)):
            refuse(f"must be true, false or a mapping of enabled and forward, not {show(value)}")
        return value


class Cors(Model):
    """Which web pages of other origins may call the service."""

    allow_origins: Annotated[
        tuple[Origin, ...],
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]
        ),
        Field(min_length=1, max_length=64),
    ] = Field(
        description="The origins that may call, such as https://app.example.com, https://*.example.com, "
        "http://localhost:* or chrome-extension://*; '*' for all."
    )
    allow_methods: tuple[HttpMethod, ...] = Field(
        default=("get", "post", "put", "delete", "patch", "head", "options"),
        description="The methods that may be used.",
    )
    allow_headers: tuple[HeaderName, ...] = Field(
        default=(),
        max_length=64,
        description="The request headers that may be sent; any, if none or `*` is given.",
    )
    allow_credentials: bool = Field(default=False, description="Whether cookies may be sent.")
    max_age: Duration = Field(default=600, description="How long a browser may keep the answer.")

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.allow_credentials and "*" in self.allow_origins:
            refuse("cannot be true while allow_origins has '*'; name the origins", key="allow_credentials")
        return self


class Timeouts(Model):
    """How long the gateway waits; no limit where none is given."""

    connect: Annotated[Duration, Field(ge=1)] = Field(
        default=5, description="How long connecting to a replica may take."
    )
    request: Annotated[Duration, Field(ge=1)] | None = Field(
        default=None,
        description="How long a replica may take to begin its answer; `idle`, where that is longer.",
    )
    idle: Annotated[Duration, Field(ge=1)] | None = Field(
        default=None, description="How long an open connection may be silent, once the answer has begun."
    )


def parse_truth(value: Any) -> Any:
    """Turn the words that YAML 1.1 took for truth values into them; leave all else."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value
