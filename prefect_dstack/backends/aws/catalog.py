"""The kinds of machines that EC2 has in a region, and in which zones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.aws.cache import Cache
from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.base import Accelerator
from prefect_dstack.backends.gpus import data_sheet_gb

__all__ = ["InstanceType", "instance_types", "read_instance_type"]

CATALOG_AGE = 24 * 3600.0


class InstanceType(BaseModel):
    """One kind of machine in one region."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="For example `g6.xlarge`.")
    cpus: int = Field(description="Virtual processors.")
    memory_gb: float = Field(description="Memory in GB.")
    architecture: str = Field(description="`x86_64` or `arm64`.")
    gpus: tuple[Accelerator, ...] = Field(default=(), description="Its accelerators.")
    spot: bool = Field(default=False, description="Whether it is also sold as spot.")
    zones: tuple[str, ...] = Field(default=(), description="The zones that have it.")


def instance_types(aws: Aws, cache: Cache, region: str) -> list[InstanceType]:
    """List the machines of a region that we can use.

    Args:
        aws: The account.
        cache: Keeps the answer for a day.
        region: Where.

    Returns:
        The kinds of machines, without those that our images or encrypted disks do not fit.

    Raises:
        ProvisioningError: With AWS's words.
    """

    def fetch() -> list[dict[str, Any]]:
        zones: dict[str, set[str]] = {}
        for offering in aws.pages(
            region,
            "ec2",
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone",
        ):
            zones.setdefault(offering["InstanceType"], set()).add(offering["Location"])
        described = aws.pages(region, "ec2", "describe_instance_types", "InstanceTypes")
        types = (read_instance_type(entry, zones.get(entry["InstanceType"], ())) for entry in described)
        return [kind.model_dump(mode="json") for kind in types if kind is not None]

    kept = cache.get(f"types-{region}", CATALOG_AGE, fetch)
    return [InstanceType.model_validate(entry) for entry in kept]


def read_instance_type(entry: Mapping[str, Any], zones: Iterable[str]) -> InstanceType | None:
    """Read one entry of DescribeInstanceTypes.

    Args:
        entry: As boto3 gives it.
        zones: Where it is offered.

    Returns:
        The kind of machine, or None if we cannot use it.
    """
    usage = entry.get("SupportedUsageClasses", ())
    architectures = entry.get("ProcessorInfo", {}).get("SupportedArchitectures", ())
    architecture = next((name for name in ("x86_64", "arm64") if name in architectures), None)
    usable = (
        architecture is not None
        and zones
        and "on-demand" in usage
        and "hvm" in entry.get("SupportedVirtualizationTypes", ())
        and entry.get("EbsInfo", {}).get("EncryptionSupport") == "supported"
    )
    gpus = [_gpu(gpu) for gpu in entry.get("GpuInfo", {}).get("Gpus", ())]
    # A part of a GPU (g6f) needs NVIDIA's licensed driver, which no public image holds.
    if not usable or any(gpu.count < 1 for gpu in gpus):
        return None
    return InstanceType(
        name=entry["InstanceType"],
        cpus=entry["VCpuInfo"]["DefaultVCpus"],
        memory_gb=entry["MemoryInfo"]["SizeInMiB"] / 1024,
        architecture=str(architecture),
        gpus=tuple(gpus),
        spot="spot" in usage,
        zones=tuple(sorted(zones)),
    )


def _gpu(entry: Mapping[str, Any]) -> Accelerator:
    name = str(entry.get("Name", "")).replace("Server ", "")
    memory = entry.get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024
    return Accelerator(
        name=name,
        memory_gb=round(data_sheet_gb(name, memory), 1),
        vendor=str(entry.get("Manufacturer", "")).lower(),
        count=entry.get("Count", 0),
    )
