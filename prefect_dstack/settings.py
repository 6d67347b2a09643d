"""Where prefect-dstack keeps its files on this machine, and the time-outs it uses."""

from __future__ import annotations

import re
from pathlib import Path

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import AliasChoices, AliasPath, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from prefect_dstack.errors import ConfigurationError

__all__ = ["Settings", "settings"]


def _names(field: str) -> AliasChoices:
    """Return the names of a setting: in TOML, in the environment and profiles, and a short one there."""
    return AliasChoices(AliasPath(field), f"prefect_integrations_dstack_{field}", f"prefect_dstack_{field}")


class Settings(PrefectBaseSettings):
    """Read as Prefect reads its own: from the environment, `.env`, TOML files and the profile."""

    model_config = build_settings_config(("integrations", "dstack"), frozen=True)

    home: Path = Field(
        default_factory=lambda: Path.home() / ".prefect-dstack",
        description="The directory of local replicas, local gateways and the local Prefect server.",
        validation_alias=_names("home"),
    )
    local_gateway_port: int = Field(
        default=8080,
        ge=1,
        le=65535,
        description="The base port of the gateway on this machine, used by the first service without a port.",
        validation_alias=_names("local_gateway_port"),
    )
    start_controller: bool = Field(
        default=True,
        description="Whether applying a service that scales starts the controller of this machine.",
        validation_alias=_names("start_controller"),
    )
    schedule_work_pool: str = Field(
        default="dstack",
        description="The work pool whose workers start what `schedule` in a configuration asks for.",
        validation_alias=_names("schedule_work_pool"),
    )
    default_image: str = Field(
        default="dstackai/base:0.15-base-ubuntu24.04",
        description="The image of containers for which the configuration names none; it has uv and Bash.",
        validation_alias=_names("default_image"),
    )
    default_nvcc_image: str = Field(
        default="dstackai/base:0.15-devel-ubuntu24.04",
        description="The same where the configuration asks for `nvcc`, the compiler of CUDA.",
        validation_alias=_names("default_nvcc_image"),
    )
    default_docker_image: str = Field(
        default="dstackai/dind",
        description="The same where the configuration asks for `docker`; its `start-dockerd` starts an "
        "engine in the container.",
        validation_alias=_names("default_docker_image"),
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The port on which a controller publishes metrics for Prometheus; None: none.",
        validation_alias=_names("metrics_port"),
    )
    metrics_address: str = Field(
        default="127.0.0.1",
        description="The address on which it does. Metrics need no token: any but 127.0.0.1 is for networks "
        "whose members may read them.",
        validation_alias=_names("metrics_address"),
    )
    bundle_size_limit: int = Field(
        default=500 * 1024**2,
        ge=0,
        description="The most bytes of files that a revision keeps a copy of.",
        validation_alias=_names("bundle_size_limit"),
    )
    bundle_files_limit: int = Field(
        default=10_000,
        ge=0,
        description="The most files and directories that a revision keeps a copy of.",
        validation_alias=_names("bundle_files_limit"),
    )

    bundle_storage: str | None = Field(
        default=None,
        description="The Prefect block, such as `s3-bucket/models`, in which the files of revisions are kept "
        "for all machines that deploy; None: each has only those that it has deployed.",
        validation_alias=_names("bundle_storage"),
    )

    @field_validator("bundle_storage")
    @classmethod
    def _named_block(cls, slug: str | None) -> str | None:
        if slug and not re.fullmatch(r"[^/\s]+/[^/\s]+", slug):
            raise PydanticCustomError(
                "slug", "must be the type and name of a block, such as s3-bucket/models"
            )
        # Where variables are always set, an empty one stands for none.
        return slug or None

    @field_validator("home")
    @classmethod
    def _expand_user(cls, home: Path) -> Path:
        return home.expanduser()


def settings() -> Settings:
    """Read the settings anew, so that a changed environment is seen.

    Returns:
        The settings of this process.

    Raises:
        ConfigurationError: If a value cannot be accepted.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).lower().removeprefix("prefect_integrations_dstack_")
        raise ConfigurationError(
            f"{first['msg'].lower()}; it is {first['input']!r}",
            source="settings",
            key=f"PREFECT_DSTACK_{name.removeprefix('prefect_dstack_')}".upper(),
        ) from error
