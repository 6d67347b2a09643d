"""`type: volume`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefect_dstack.configurations.base import ConfigurationModel
from prefect_dstack.configurations.names import BackendName, Identifier, Name, Tags
from prefect_dstack.configurations.scalars import Gigabytes, OffableDuration


class VolumeConfiguration(ConfigurationModel):
    """A network volume that outlives runs."""

    type: Literal["volume"] = Field(default="volume", description="The type of the configuration.")
    name: Name | None = Field(
        default=None,
        description="The name of the volume; the file's name without .dstack.yml if it is not given.",
    )
    backend: BackendName = Field(description="The backend that the volume is of.")
    region: Identifier | None = Field(default=None, description="The region of the volume.")
    availability_zone: Identifier | None = Field(
        default=None, description="The availability zone of the volume."
    )
    size: Gigabytes | None = Field(default=None, description="The size of a new volume, such as 100GB.")
    volume_id: Identifier | None = Field(
        default=None, description="The identifier of a volume that exists already."
    )
    auto_cleanup_duration: OffableDuration = Field(
        default=None, description="How long the volume may be unused before it is deleted; off keeps it."
    )
    claim_name: Identifier | None = Field(
        default=None, description="The name of an existing claim in Kubernetes."
    )
    storage_class_name: Identifier | None = Field(
        default=None, description="The storage class in Kubernetes."
    )
    access_modes: tuple[Identifier, ...] = Field(
        default=("ReadWriteOnce",), description="The access modes of a claim in Kubernetes."
    )
    read_only: bool = Field(default=False, description="Whether the claim in Kubernetes is only read.")
    tags: Tags | None = Field(default=None, description="Tags to put on the volume.")
