"""What the AWS backend needs to know of an account."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["AwsSettings", "Image", "Region"]

Region = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$")]
Image = Annotated[
    str, StringConstraints(max_length=1011, pattern=r"^(ami-[0-9a-f]{8,17}|/[A-Za-z0-9_./-]+)$")
]
Zone = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{3,40}$")]


def _network(value: str) -> str:
    return str(ipaddress.ip_network(value, strict=False))


Network = Annotated[str, AfterValidator(_network)]


class AwsSettings(BaseModel):
    """Where in an AWS account machines are created, and how.

    Example:
        >>> AwsSettings(regions=("eu-west-1",)).public_ips
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    regions: tuple[Region, ...] = Field(
        min_length=1, description="The regions in which machines may be created, the preferred first."
    )
    availability_zones: tuple[Zone, ...] = Field(
        default=(), description="The only zones in which machines may be created; empty: all of the regions."
    )
    vpc_id: str | None = Field(
        default=None,
        pattern=r"^vpc-[0-9a-f]{8,17}$",
        description="The VPC in which machines are created; None: the default VPC of each region.",
    )
    subnet_ids: tuple[Annotated[str, StringConstraints(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...] = Field(
        default=(), description="The only subnets in which machines are created; empty: any of the VPC."
    )
    security_group_id: str | None = Field(
        default=None,
        pattern=r"^sg-[0-9a-f]{8,17}$",
        description="A security group of your own for replicas and gateways, used as it is; None: one each "
        "is created, and removed with its last user.",
    )
    instance_profile: str | None = Field(
        default=None,
        max_length=600,
        pattern=r"^(arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/)?[A-Za-z0-9_+=,.@/-]+$",
        description="The name or ARN of an IAM instance profile for replicas that call AWS themselves; "
        "with it, containers reach the metadata of their instance.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict, description="More tags for everything that is created."
    )
    image: Image | None = Field(
        default=None,
        description="An AMI (with one region only), or the name of an SSM parameter that holds one, for "
        "machines without GPUs; None: Ubuntu LTS.",
    )
    gpu_image: Image | None = Field(
        default=None,
        description="The same for machines with GPUs; it must hold their driver. None: AWS's Deep Learning "
        "base image.",
    )
    disk_gb: int = Field(
        default=100, ge=8, le=16384, description="Size of the root disk in GB where a service does not say."
    )
    public_ips: bool = Field(
        default=True,
        description="Whether machines get public addresses; without, they are reached at their private ones, "
        "and their subnets need another way out, such as a NAT gateway.",
    )
    ssh_from: tuple[Network, ...] | None = Field(
        default=None,
        description="The networks from which SSH to machines is allowed; None: the address of the machine "
        "that deploys. Gateways of the same VPC may always.",
    )
    gateway_instance_type: str = Field(
        default="t3.small",
        pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$",
        description="The kind of machine for gateways.",
    )
    boot_timeout: float = Field(
        default=600.0,
        gt=0,
        description="Seconds within which a new machine must answer; GPU images boot slowly.",
    )
    endpoint_url: str | None = Field(
        default=None, pattern=r"^https?://", description="Another address for the AWS APIs; None: AWS's own."
    )

    @model_validator(mode="after")
    def _one_region(self) -> Self:
        bound = [
            name
            for name in ("vpc_id", "subnet_ids", "security_group_id", "image", "gpu_image")
            if (value := getattr(self, name)) and not str(value).startswith("/")
        ]
        if bound and len(self.regions) > 1:
            raise ValueError(
                f"{', '.join(bound)}: belongs to one region, but regions has {len(self.regions)}"
            )
        return self

    @model_validator(mode="after")
    def _tags_fit(self) -> Self:
        for key, value in self.tags.items():
            if not 1 <= len(key) <= 128 or len(value) > 256:
                raise ValueError(f"tags: {key[:40]!r}: AWS allows 128 characters in a key and 256 in a value")
            if key.startswith(("aws:", "prefect-dstack:")):
                raise ValueError(f"tags: {key[:40]!r}: this prefix is reserved")
        return self
