"""Ports, alone and in pairs."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.messages import show

_PAIR = re.compile(r"(?:([0-9]{1,10}|\*):)?([0-9]{1,10})")


def parse_port(value: Any) -> Any:
    """Accept a TCP port, a whole number from 1 to 65535."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        refuse(f"must be a port from 1 to 65535, not {show(value)}")
    return int(value)


Port = Annotated[int, BeforeValidator(parse_port, json_schema_input_type=int), Field(ge=1, le=65535)]


def _split(value: Any, example: str) -> tuple[str | int | None, str | int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return None, value
    match = _PAIR.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        refuse(f"must be a port such as 8000 or {example}, not {show(value)}")
    return match[1], match[2]


def _rename(value: Any, **names: str) -> Any:
    return {names.get(key, key): port for key, port in value.items()} if isinstance(value, dict) else value


class ServicePort(Model):
    """Where a service listens, and on which port the gateway publishes it.

    Written as `8000`, or `8001:8000` to publish on the gateway's port 8001.
    """

    shorthand = ("integer", "string")

    gateway_port: Port | None = Field(
        default=None, description="The port on the gateway; the gateway's base port if it is not given."
    )
    port: Port = Field(description="The port that the application listens on.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, (dict, ServicePort)):
            return _rename(value, local_port="gateway_port", container_port="port")
        gateway_port, port = _split(value, "8001:8000")
        if gateway_port == "*":
            refuse("must name the gateway's port, or leave it out")
        parsed = {"gateway_port": None if gateway_port is None else parse_port(gateway_port)}
        return {**parsed, "port": parse_port(port)}

    @model_serializer(mode="plain")
    def _written(self) -> int | str:
        return self.port if self.gateway_port is None else f"{self.gateway_port}:{self.port}"

    def __str__(self) -> str:
        return str(self._written())


class PortMapping(Model):
    """A port of a task, and the port by which it is reached from outside.

    Written as `8000` (both the same), `80:8000`, or `*:8000` for any free port.
    """

    shorthand = ("integer", "string")

    local_port: Port | None = Field(
        default=None, description="The port outside; any free one if it is not given."
    )
    container_port: Port = Field(description="The port that the application listens on.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, (dict, PortMapping)):
            return value
        local_port, port = _split(value, "80:8000")
        if local_port != "*":
            local_port = parse_port(port if local_port is None else local_port)
        return {
            "local_port": None if local_port == "*" else local_port,
            "container_port": parse_port(port),
        }

    @model_serializer(mode="plain")
    def _written(self) -> int | str:
        if self.local_port == self.container_port:
            return self.container_port
        return f"{self.local_port or '*'}:{self.container_port}"

    def __str__(self) -> str:
        return str(self._written())
