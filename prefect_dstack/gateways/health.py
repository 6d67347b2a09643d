"""How a gateway checks the replicas behind it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefect_dstack.configurations.names import HeaderName, HeaderValue, HttpMethod, RequestTarget

__all__ = ["HealthCheck"]


class HealthCheck(BaseModel):
    """A request that a healthy replica answers with a status from 200 to 299."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    method: HttpMethod = Field(default="get", description="The HTTP method.")
    path: RequestTarget = Field(default="/", description="The path to request, perhaps with a query.")
    headers: tuple[tuple[HeaderName, HeaderValue], ...] = Field(
        default=(), max_length=16, description="The headers to send."
    )
    body: (
        Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]+$")] | None
    ) = Field(default=None, description="The body to send.")
    interval: float = Field(default=2.0, ge=0.1, le=3600, description="Seconds between two checks.")
    timeout: float = Field(default=10.0, ge=0.1, le=3600, description="Seconds that an answer may take.")
    fall: int = Field(default=3, ge=1, le=100, description="Failures in a row that take a replica out.")
    rise: int = Field(default=1, ge=1, le=100, description="Successes in a row that bring it back.")

    @model_validator(mode="after")
    def _sendable(self) -> Self:
        names = [name.lower() for name, _ in self.headers]
        if any(name in ("content-length", "transfer-encoding", "connection") for name in names):
            raise ValueError("the gateway sets Content-Length, Transfer-Encoding and Connection itself")
        return self
