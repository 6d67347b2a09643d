"""Machines that are reached over SSH."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.environment import check_references
from prefect_dstack.configurations.interpolation import secrets_of
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import (
    Address,
    Fingerprint,
    LocalPath,
    Login,
    Network,
    PrivateAddress,
)
from prefect_dstack.configurations.ports import Port
from prefect_dstack.configurations.scalars import Positive


def _not_a_key(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() <= {"public", "private"}:
        refuse(
            "must not be in the file; name a secret such as ${{ secrets.SSH_KEY }}, or use 'identity_file'"
        )
    return value


def _only_reference(value: str) -> str:
    check_references(value)
    if not secrets_of(value):
        refuse("must be a secret such as ${{ secrets.SSH_KEY }}; a key in a file is named by 'identity_file'")
    return value


SshKey = Annotated[
    str, BeforeValidator(_not_a_key, json_schema_input_type=str), AfterValidator(_only_reference)
]


def _parse_blocks(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 6 else value


Blocks = Annotated[
    Literal["auto"] | Positive, BeforeValidator(_parse_blocks, json_schema_input_type=int | str)
]


class SshLogin(Model):
    """How to log in; what is not given comes from the keys around it, or from SSH's own configuration."""

    user: Login | None = Field(default=None, description="The user to log in as.")
    port: Port | None = Field(default=None, description="The port of the SSH server; 22 if not given.")
    identity_file: LocalPath | None = Field(default=None, description="The path of the private key.")
    ssh_key: SshKey | None = Field(
        default=None, repr=False, description="A reference to the secret that is the private key."
    )


class SshProxy(SshLogin):
    """A host through which others are reached."""

    hostname: Address = Field(description="The host name or IP address.")
    host_key: Fingerprint | None = Field(
        default=None,
        description="The SHA-256 fingerprint of the host's key; known_hosts is asked if not given.",
    )


class SshHost(SshLogin):
    """A host, written as its name or a mapping."""

    shorthand = ("string",)

    hostname: Address = Field(description="The host name or IP address.")
    host_key: Fingerprint | None = Field(
        default=None,
        description="The SHA-256 fingerprint of the host's key; known_hosts is asked if not given.",
    )
    proxy_jump: SshProxy | None = Field(
        default=None, description="The host through which this one is reached."
    )
    internal_ip: PrivateAddress | None = Field(
        default=None, description="The address by which the other hosts reach this one."
    )
    blocks: Blocks | None = Field(
        default=None, description="Into how many parts the machine is split, a number or auto."
    )

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, str):
            user, at, hostname = value.rpartition("@")
            return {"hostname": hostname, **({"user": user} if at else {})}
        if not isinstance(value, (dict, SshHost)):
            refuse(f"must be a host name or a mapping with 'hostname', not {show(value)}")
        return value


class SshConfig(SshLogin):
    """The hosts of a fleet, and how to log in to all of them."""

    hosts: tuple[SshHost, ...] = Field(min_length=1, description="The hosts, each its name or a mapping.")
    proxy_jump: SshProxy | None = Field(
        default=None, description="The host through which all others are reached."
    )
    network: Network | None = Field(
        default=None,
        description="The private network by which the hosts reach each other, such as 10.0.0.0/24.",
    )
