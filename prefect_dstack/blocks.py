"""Prefect blocks: what is wanted of services, gateways, fleets and clouds, kept by the Prefect API."""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import Field, HttpUrl, SecretStr

from prefect_dstack.domain.record import ServiceRecord

__all__ = [
    "DstackAuthority",
    "DstackController",
    "DstackGateway",
    "DstackRun",
    "DstackService",
    "DstackSshFleet",
    "DstackToken",
]

# Prefect's own pictures and page on blocks, pinned as Prefect pins them; a picture cannot be shipped, as the
# API takes nothing but web addresses.
LOGOS = "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos"
DOCUMENTATION = HttpUrl("https://www.prefect.io/docs/latest/develop/blocks")
# Prefect's UI offers every registered type under "Create": the card says what to do instead.
BY_HAND = "Written by prefect-dstack, not by hand: use `{}` instead of this form. {}"


def logo(name: str) -> HttpUrl:
    """Return the address of one of Prefect's pictures of blocks.

    Args:
        name: Its name, without the ending.
    """
    return HttpUrl(f"{LOGOS}/{name}.png")


class DstackService(Block):
    """The record of one service: its revisions, its gateway and its endpoint.

    Written by the flows of this project, and only by whoever holds the service's concurrency limit.

    Example:
        ```python
        from prefect_dstack.blocks import DstackService

        service = DstackService.load("BLOCK_NAME")
        print(service.record["endpoint"]["url"])
        ```
    """

    _block_type_name: ClassVar[str] = "dstack Service"
    _block_type_slug: ClassVar[str] = "dstack-service"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack apply", "The record of one service: its revisions, its gateway and its endpoint."
    )
    _logo_url: ClassVar[HttpUrl] = logo("process")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    record: dict[str, Any] = Field(description="The record as JSON, as `ServiceRecord` describes it.")
    environment: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="Values that a revision took from the environment of its deployer, by revision and name.",
    )

    def read(self) -> ServiceRecord:
        """Read the record.

        Returns:
            The record, validated.
        """
        return ServiceRecord.model_validate(self.record)


class DstackRun(Block):
    """The record of one task or development environment: its last run.

    Example:
        ```python
        from prefect_dstack.blocks import DstackRun

        run = DstackRun.load("BLOCK_NAME")
        print(run.record["exit_code"])
        ```
    """

    _block_type_name: ClassVar[str] = "dstack Run"
    _block_type_slug: ClassVar[str] = "dstack-run"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack apply", "The record of one task or development environment: its last run."
    )
    _logo_url: ClassVar[HttpUrl] = logo("process")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    record: dict[str, Any] = Field(description="The record as JSON, as `RunRecord` describes it.")


class DstackController(Block):
    """The resident controller that acts for services which several could change.

    Example:
        ```python
        from prefect_dstack.blocks import DstackController

        controller = DstackController.load("BLOCK_NAME")
        print(controller.leader["where"])
        ```
    """

    _block_type_name: ClassVar[str] = "dstack Controller"
    _block_type_slug: ClassVar[str] = "dstack-controller"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack controller start", "The resident controller that leads, and when it was last there."
    )
    _logo_url: ClassVar[HttpUrl] = logo("process")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    leader: dict[str, Any] = Field(
        description="Which controller leads, where it runs, and its last sign of life."
    )


class DstackGateway(Block):
    """A gateway: the reverse proxy with a public address in front of replicas.

    Example:
        ```python
        from prefect_dstack.blocks import DstackGateway

        gateway = DstackGateway.load("BLOCK_NAME")
        print(gateway.configuration["domain"])
        ```
    """

    _block_type_name: ClassVar[str] = "dstack Gateway"
    _block_type_slug: ClassVar[str] = "dstack-gateway"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack apply", "A gateway: the reverse proxy with a public address in front of replicas."
    )
    _logo_url: ClassVar[HttpUrl] = logo("webhook")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    configuration: dict[str, Any] = Field(description="The gateway's configuration, as it was written.")
    directory: str = Field(default=".", description="What relative paths in the configuration start from.")
    details: dict[str, Any] = Field(
        default_factory=dict,
        description="What its backend needs to reach it again, such as addresses and ids.",
    )
    location: dict[str, str] | None = Field(
        default=None, description="The one machine on which it can be changed; none: any that reaches it."
    )


class DstackSshFleet(Block):
    """Hosts that are reached over SSH, under one name; secrets are in it only as references.

    Example:
        ```python
        from prefect_dstack.blocks import DstackSshFleet

        fleet = DstackSshFleet.load("BLOCK_NAME")
        print(fleet.configuration["ssh_config"]["hosts"])
        ```
    """

    _block_type_name: ClassVar[str] = "dstack SSH Fleet"
    _block_type_slug: ClassVar[str] = "dstack-ssh-fleet"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack apply", "Hosts that are reached over SSH, under one name."
    )
    _logo_url: ClassVar[HttpUrl] = logo("terminal")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    configuration: dict[str, Any] = Field(description="The fleet's configuration, as it was written.")
    directory: str = Field(default=".", description="What relative paths in the configuration start from.")
    internal_addresses: dict[str, str] = Field(
        default_factory=dict, description="The addresses of hosts on the fleet's private network, by host."
    )


class DstackToken(Block):
    """What is known of a token that opens services: its SHA-256, never the token.

    Example:
        ```python
        from prefect_dstack.blocks import DstackToken

        token = DstackToken.load("BLOCK_NAME")
        print(token.token["expires_at"])
        ```
    """

    _block_type_name: ClassVar[str] = "dstack Token"
    _block_type_slug: ClassVar[str] = "dstack-token"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack token create", "What is known of a token that opens services: its SHA-256."
    )
    _logo_url: ClassVar[HttpUrl] = logo("secret")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    token: dict[str, Any] = Field(description="Its id, digest, purpose and end, as `Token` describes them.")


class DstackAuthority(Block):
    """Our own certificate authority, for gateways with `certificate: {type: self-signed}`.

    Example:
        ```python
        from prefect_dstack.blocks import DstackAuthority

        authority = DstackAuthority.load("BLOCK_NAME")
        print(authority.certificate)
        ```
    """

    _block_type_name: ClassVar[str] = "dstack Certificate Authority"
    _block_type_slug: ClassVar[str] = "dstack-certificate-authority"
    _description: ClassVar[str] = BY_HAND.format(
        "prefect-dstack apply", "The certificate authority of gateways with self-signed certificates."
    )
    _logo_url: ClassVar[HttpUrl] = logo("secret")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    certificate: str = Field(description="Its certificate, PEM; what clients must trust.")
    key: SecretStr = Field(description="Its private key, PEM.")
