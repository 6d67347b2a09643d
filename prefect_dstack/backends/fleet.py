"""Fleets: hosts that somebody gave us, reached over SSH."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from prefect_dstack.configurations import FleetConfiguration, SshConfig, SshHost, SshProxy, resolve_text
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = ["Fleet", "FleetHost", "fleet_of", "host_of"]

SecretLookup = Callable[[str], str]


class FleetHost(SshAccess):
    """One host of a fleet, or of a gateway."""

    name: str = Field(default="", description="What people call it; default: its host name.")
    internal_ip: str | None = Field(
        default=None, description="The address by which machines of its private network reach it."
    )
    network: str | None = Field(default=None, description="That network, for example `10.0.0.0/24`.")
    blocks: int | Literal["auto"] | None = Field(
        default=None,
        description="Into how many equal parts it is split, of which each replica takes whole ones; "
        "`auto`: one for each GPU, else for each CPU; None: it is shared by what replicas ask for.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_it(cls, value: object) -> object:
        if isinstance(value, dict) and not value.get("name") and "hostname" in value:
            port = value.get("port")
            suffix = "" if port in (None, 22) else f":{port}"
            return {**value, "name": f"{value['hostname']}{suffix}"}
        return value

    @property
    def access(self) -> SshAccess:
        """How it is reached, and nothing else: hosts with the same access share a connection."""
        return SshAccess(**{name: getattr(self, name) for name in SshAccess.model_fields})

    def machine(self) -> SshMachine:
        """Reach it; replicas publish their ports on its private address, if it has one."""
        return SshMachine(self.access, name=self.name, publish_address=self.internal_ip or "127.0.0.1")


class Fleet(BaseModel):
    """Hosts under one name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="The name of the fleet.")
    hosts: tuple[FleetHost, ...] = Field(min_length=1, description="Its hosts.")

    @model_validator(mode="after")
    def _no_twins(self) -> Self:
        names = [host.name for host in self.hosts]
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise ValueError(f"the host {', '.join(twins)} is there twice")
        return self


def fleet_of(configuration: FleetConfiguration, lookup: SecretLookup) -> Fleet:
    """Create a fleet from its configuration.

    Args:
        configuration: With `ssh_config`; paths of keys are relative to its directory.
        lookup: Gives the value of a secret by its name, or raises.

    Returns:
        The fleet; keys that secrets hold are in it as `SecretStr`.

    Raises:
        ConfigurationError: If it has no `ssh_config`, no name, or a host twice.
    """
    common = configuration.ssh_config
    if common is None:
        raise ConfigurationError(
            "is missing: a fleet needs hosts that can be reached over SSH",
            source=configuration.source_name,
            key="ssh_config",
        )
    if not configuration.name:
        raise ConfigurationError(
            "is missing: the fleet needs a name", source=configuration.source_name, key="name"
        )
    whole = configuration.blocks if "blocks" in configuration.model_fields_set else None
    hosts = tuple(
        host_of(host, configuration.directory, lookup, common=common, blocks=whole) for host in common.hosts
    )
    names = [host.name for host in hosts]
    for number, name in enumerate(names):
        if name in names[:number]:
            key = f"ssh_config.hosts.{number}"
            raise ConfigurationError(
                f"the host {name} is there twice; keep one",
                source=configuration.source_name,
                line=configuration.line_of(key),
                key=key,
            )
    return Fleet(name=configuration.name, hosts=hosts)


def host_of(
    host: SshHost,
    directory: Path,
    lookup: SecretLookup,
    *,
    common: SshConfig | None = None,
    blocks: int | Literal["auto"] | None = None,
) -> FleetHost:
    """Create a host from its configuration.

    Args:
        host: As a fleet or a gateway names it.
        directory: What relative paths of keys start from.
        lookup: Gives the value of a secret by its name, or raises.
        common: What holds for all hosts of the fleet.
        blocks: Into how many parts all hosts of the fleet are split.

    Returns:
        The host.
    """
    jump = host.proxy_jump or (common.proxy_jump if common else None)
    # A key that a host names itself replaces the one that is common to all.
    keys = host if host.identity_file or host.ssh_key or common is None else common
    return FleetHost(
        hostname=host.hostname,
        port=host.port or (common.port if common else None),
        user=host.user or (common.user if common else None),
        identity_file=_path(keys.identity_file, directory),
        ssh_key=_secret(keys.ssh_key, lookup),
        host_key=host.host_key,
        proxy_jump=None if jump is None else _jump(jump, directory, lookup),
        internal_ip=host.internal_ip,
        network=common.network if common else None,
        blocks=host.blocks or blocks,
    )


def _jump(jump: SshProxy, directory: Path, lookup: SecretLookup) -> SshAccess:
    return SshAccess(
        hostname=jump.hostname,
        port=jump.port,
        user=jump.user,
        identity_file=_path(jump.identity_file, directory),
        ssh_key=_secret(jump.ssh_key, lookup),
        host_key=jump.host_key,
    )


def _path(path: str | None, directory: Path) -> Path | None:
    return None if path is None else directory / Path(path).expanduser()


def _secret(text: str | None, lookup: SecretLookup) -> SecretStr | None:
    return None if text is None else SecretStr(resolve_text(text, lookup))
