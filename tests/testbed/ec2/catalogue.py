"""What AWS publishes and moto does not know: images, their SSM parameters, prices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UBUNTU = "ami-0a0a0a0a0a0a0a001"
UBUNTU_ARM = "ami-0a0a0a0a0a0a0a002"
DEEP_LEARNING = "ami-0a0a0a0a0a0a0a003"

_CANONICAL = "/aws/service/canonical/ubuntu/server/24.04/stable/current"
_DEEP_LEARNING = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04"

PARAMETERS = {
    f"{_CANONICAL}/amd64/hvm/ebs-gp3/ami-id": UBUNTU,
    f"{_CANONICAL}/arm64/hvm/ebs-gp3/ami-id": UBUNTU_ARM,
    f"{_DEEP_LEARNING}/latest/ami-id": DEEP_LEARNING,
}

# The others are left out of moto's books: they cost seconds, and tell no more.
FAMILIES = ("t2", "t3", "t4g", "m5", "g4ad", "g4dn", "g5", "g6", "g6e", "g6f", "mac2", "p3dn", "p4d", "p5en")

# US dollars an hour on demand; of these types only, so that there are types whose price is unknown.
PRICES = {
    "t3.micro": 0.0104,
    "t3.small": 0.0208,
    "t3.medium": 0.0416,
    "t3.large": 0.0832,
    "m5.large": 0.096,
    "m5.xlarge": 0.192,
    "g4dn.xlarge": 0.526,
    "g6.xlarge": 0.8048,
    "g5.xlarge": 1.006,
    "g6e.xlarge": 1.861,
    "p4d.24xlarge": 32.7726,
}

# Times the price on demand.
SPOT = 0.3


def write_images(path: Path) -> None:
    """Write the images as moto reads them from `MOTO_AMIS_PATH`."""
    ubuntu = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{}-server-20261101"
    deep_learning = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20261101"
    names = {
        UBUNTU: (ubuntu.format("amd64"), "099720109477", "x86_64"),
        UBUNTU_ARM: (ubuntu.format("arm64"), "099720109477", "arm64"),
        DEEP_LEARNING: (deep_learning, "898082745236", "x86_64"),
    }
    images = [
        {
            "ami_id": identifier,
            "state": "available",
            "public": True,
            "owner_id": owner,
            "image_location": f"amazon/{name}",
            "sriov": "simple",
            "root_device_type": "ebs",
            "root_device_name": "/dev/sda1",
            "description": name,
            "image_type": "machine",
            "platform": None,
            "architecture": architecture,
            "name": name,
            "virtualization_type": "hvm",
            "hypervisor": "xen",
            "creation_date": "2026-11-01T00:00:00.000Z",
        }
        for identifier, (name, owner, architecture) in names.items()
    ]
    path.write_text(json.dumps(images))


def products(region: str) -> Iterator[dict[str, Any]]:
    """What the Pricing API tells of the types in a region."""
    for name, price in PRICES.items():
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{price:.10f}"}}
        yield {
            "product": {
                "productFamily": "Compute Instance",
                "attributes": {"instanceType": name, "regionCode": region, "operatingSystem": "Linux"},
            },
            "terms": {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension}}}},
        }
