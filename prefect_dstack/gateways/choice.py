"""Which gateway a service gets: a decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect_dstack.errors import ConfigurationError, NotFoundError

__all__ = ["LOCAL", "GatewayCandidate", "choose_gateway"]

LOCAL = "local"
"""The gateway that each machine has without a configuration."""


@dataclass(frozen=True)
class GatewayCandidate:
    """A configured gateway, as far as the choice depends on it.

    Attributes:
        name: Its name.
        default: Whether services that name no gateway use it.
        domain: The domain below which services have names.
        address: Where it is reached; empty while its machine was not created yet.
        usable: Whether its configuration can be read; one that cannot is only taken where it is meant.
    """

    name: str
    default: bool = False
    domain: str | None = None
    address: str = ""
    usable: bool = True


def choose_gateway(
    wanted: bool | str | None,
    candidates: Sequence[GatewayCandidate],
    *,
    before: str | None = None,
    written: str = "",
    source: str | None = None,
) -> str:
    """Choose the gateway of a service.

    Args:
        wanted: The name or address that the service asks for; True or None: the default one; False: none but
            that of the machine itself, which nobody else can reach.
        candidates: The gateways that are configured.
        before: The gateway that the service has had, kept where the configuration leaves the choice.
        written: What the configuration says, for messages: where a secret holds the address, its reference.
        source: The file of the configuration, for messages.

    Returns:
        The name of the gateway: the one that was asked for; else the one before, the default or only one;
        else that of this machine.

    Raises:
        NotFoundError: If there is no such gateway.
        ConfigurationError: If there are several and none is the default.
    """
    names = [candidate.name for candidate in candidates]
    if wanted is False:
        return LOCAL
    if isinstance(wanted, str):
        name = wanted.rpartition("/")[2]
        if name in names or name == LOCAL:
            return name
        for candidate in candidates:
            if wanted in (candidate.domain, candidate.address):
                return candidate.name
        raise NotFoundError(
            f"gateway: {written or wanted}: there is none with this name or address; "
            f"there are: {', '.join([*names, LOCAL])}"
        )
    if before is not None and before in [*names, LOCAL]:
        return before
    defaults = [candidate.name for candidate in candidates if candidate.default]
    usable = [candidate.name for candidate in candidates if candidate.usable]
    if len(usable) > 1 and len(defaults) != 1:
        raise ConfigurationError(
            f"is missing; there are {', '.join(usable)}; name one, or give one of them 'default: true'",
            source=source,
            key="gateway",
        )
    return (defaults or usable or [LOCAL])[0]
