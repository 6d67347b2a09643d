"""`type: dev-environment`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefect_dstack.configurations.base import refuse
from prefect_dstack.configurations.names import EditorVersion
from prefect_dstack.configurations.ports import PortMapping
from prefect_dstack.configurations.run import Commands, RunConfiguration, check_image_source
from prefect_dstack.configurations.scalars import OffableDuration


class DevEnvironmentConfiguration(RunConfiguration):
    """A machine to work on from an editor."""

    type: Literal["dev-environment"] = Field(
        default="dev-environment", description="The type of the configuration."
    )
    ide: Literal["vscode", "cursor", "windsurf", "zed"] | None = Field(
        default=None,
        description="The editor to prepare: vscode, cursor, windsurf or zed; only SSH if not given.",
    )
    version: EditorVersion | None = Field(default=None, description="The version of the editor.")
    init: Commands = Field(default=(), description="The shell commands to run at the start.")
    inactivity_duration: OffableDuration = Field(
        default=None,
        description="How long nobody may be connected before it stops, such as 2h; off for no limit.",
    )
    ports: tuple[PortMapping, ...] = Field(
        default=(), description="The ports to expose, such as 8000, '80:8000' or '*:8000'."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_image_source(self)
        if self.version is not None and self.ide is None:
            refuse("needs 'ide' beside it", key="version")
        if self.ide == "windsurf" and self.version is not None and "@" not in self.version:
            refuse("must be version@commit for windsurf, such as 1.101.0@0123abc", key="version")
        if self.entrypoint is not None:
            refuse("is not for a dev-environment; use 'init'", key="entrypoint")
        return self
