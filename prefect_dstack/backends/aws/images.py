"""Which image a machine boots from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.errors import ProvisioningError

__all__ = ["Architecture", "MachineImage", "find_image"]

Architecture = str
"""As EC2 spells it: `x86_64` or `arm64`."""

UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{architecture}/hvm/ebs-gp3/ami-id"
DEEP_LEARNING = (
    "/aws/service/deeplearning/ami/{architecture}/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
)

# Owner and name for DescribeImages, where the SSM parameters cannot be read.
UBUNTU_OWNER = "099720109477"
UBUNTU_NAME = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{architecture}-server-*"
DEEP_LEARNING_NAME = "Deep Learning{arm} Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"


class MachineImage(BaseModel):
    """An AMI of one region."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="For example `ami-0abc…`.")
    root_device: str = Field(description="The name of its root disk, for example `/dev/sda1`.")
    root_gb: int = Field(description="The least size of its root disk, in GB.")


def find_image(aws: Aws, region: str, architecture: Architecture, *, gpu: bool) -> MachineImage:
    """Find the image for a kind of machine: the one set, else the current one of its publisher.

    Args:
        aws: The account.
        region: Images have another id in each.
        architecture: `x86_64` or `arm64`.
        gpu: Whether the machine has GPUs, whose driver the image must hold.

    Returns:
        The image.

    Raises:
        ProvisioningError: If there is none.
    """
    wanted = aws.settings.gpu_image if gpu else aws.settings.image
    if wanted and wanted.startswith("ami-"):
        return _image(aws.call(region, "ec2", "describe_images", ImageIds=[wanted])["Images"][0])
    if wanted:
        return _by_parameter(aws, region, wanted)
    deb = "arm64" if architecture == "arm64" else "amd64"
    parameter = DEEP_LEARNING.format(architecture=architecture) if gpu else UBUNTU.format(architecture=deb)
    try:
        return _by_parameter(aws, region, parameter)
    except ProvisioningError as refused:
        if gpu:
            name = DEEP_LEARNING_NAME.format(arm=" ARM64" if architecture == "arm64" else "")
            owner = "amazon"
        else:
            name, owner = UBUNTU_NAME.format(architecture=deb), UBUNTU_OWNER
        images = aws.call(
            region,
            "ec2",
            "describe_images",
            Owners=[owner],
            Filters=[
                {"Name": "name", "Values": [name]},
                {"Name": "architecture", "Values": [architecture]},
                {"Name": "state", "Values": ["available"]},
            ],
        )["Images"]
        if not images:
            raise ProvisioningError(
                f"aws: {region}: no image: neither the SSM parameter {parameter} nor an image named {name!r} "
                f"can be read; set {'gpu_image' if gpu else 'image'} ({refused})"
            ) from refused
        return _image(max(images, key=lambda image: image["CreationDate"]))


def _by_parameter(aws: Aws, region: str, name: str) -> MachineImage:
    identifier = aws.call(region, "ssm", "get_parameter", Name=name)["Parameter"]["Value"]
    images = aws.call(region, "ec2", "describe_images", ImageIds=[identifier])["Images"]
    if not images:
        raise ProvisioningError(f"aws: {region}: the image {identifier} of {name} does not exist")
    return _image(images[0])


def _image(image: dict[str, Any]) -> MachineImage:
    root = image.get("RootDeviceName") or "/dev/sda1"
    sizes = [
        mapping["Ebs"].get("VolumeSize") or 0
        for mapping in image.get("BlockDeviceMappings", ())
        if mapping.get("DeviceName") == root and "Ebs" in mapping
    ]
    return MachineImage(id=image["ImageId"], root_device=root, root_gb=max(sizes, default=0) or 8)
