"""Where in a region machines are put: its VPC, and a subnet in each zone."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.aws.tags import filters
from prefect_dstack.errors import ProvisioningError

__all__ = ["Network", "find_network", "network_name", "subnet_by_zone"]


def network_name(vpc_id: str) -> str:
    """Return what offers and instances call the network of a VPC."""
    return f"aws/{vpc_id}"


class Network(BaseModel):
    """The VPC of a region, and the subnet of each zone."""

    model_config = ConfigDict(frozen=True)

    vpc_id: str = Field(description="The VPC.")
    cidr: str = Field(description="Its addresses.")
    subnets: dict[str, str] = Field(description="A subnet by zone; zones without a usable one are missing.")


def find_network(aws: Aws, region: str) -> Network:
    """Find the VPC and subnets of a region.

    Args:
        aws: The account; its settings may name VPC and subnets.
        region: Where.

    Returns:
        The network.

    Raises:
        ProvisioningError: If there is none that has a way to the internet.
    """
    wanted = aws.settings
    only: list[dict[str, Any]] = []
    if wanted.subnet_ids:
        only = aws.call(region, "ec2", "describe_subnets", SubnetIds=list(wanted.subnet_ids))["Subnets"]
    if wanted.vpc_id or only:
        vpc_id = wanted.vpc_id or only[0]["VpcId"]
        vpcs = aws.call(region, "ec2", "describe_vpcs", VpcIds=[vpc_id])["Vpcs"]
    else:
        vpcs = aws.call(region, "ec2", "describe_vpcs", Filters=filters(is_default="true"))["Vpcs"]
    if not vpcs:
        raise ProvisioningError(f"aws: {region}: the account has no default VPC there; set vpc_id")
    vpc = vpcs[0]
    if strangers := [subnet["SubnetId"] for subnet in only if subnet["VpcId"] != vpc["VpcId"]]:
        raise ProvisioningError(f"aws: {region}: {', '.join(strangers)} is not in {vpc['VpcId']}")
    within = filters(vpc_id=vpc["VpcId"])
    subnets = only or list(aws.pages(region, "ec2", "describe_subnets", "Subnets", Filters=within))
    tables = list(aws.pages(region, "ec2", "describe_route_tables", "RouteTables", Filters=within))
    usable = subnet_by_zone(subnets, tables, public=wanted.public_ips)
    if not usable:
        if wanted.public_ips:
            missing = "no subnet with a route to an internet gateway (0.0.0.0/0 to igw-...)"
            remedy = "add one, or set public_ips to false for subnets behind a NAT gateway"
        else:
            missing = "no subnet with a route to the internet (0.0.0.0/0)"
            remedy = "add a NAT gateway"
        raise ProvisioningError(f"aws: {region}: {vpc['VpcId']} has {missing}: {remedy}")
    return Network(vpc_id=vpc["VpcId"], cidr=vpc["CidrBlock"], subnets=usable)


def subnet_by_zone(
    subnets: Sequence[Mapping[str, Any]], tables: Sequence[Mapping[str, Any]], *, public: bool
) -> dict[str, str]:
    """Choose the roomiest subnet of each zone that has a way to the internet.

    Args:
        subnets: As DescribeSubnets gives them.
        tables: As DescribeRouteTables gives them.
        public: Whether the way must be an internet gateway.

    Returns:
        Subnet by zone.
    """
    by_subnet: dict[str, Mapping[str, Any]] = {}
    main: Mapping[str, Any] | None = None
    for table in tables:
        for association in table.get("Associations", ()):
            if association.get("Main"):
                main = table
            elif "SubnetId" in association:
                by_subnet[association["SubnetId"]] = table
    chosen: dict[str, Mapping[str, Any]] = {}
    for subnet in sorted(subnets, key=lambda subnet: str(subnet["SubnetId"])):
        table_or_none = by_subnet.get(subnet["SubnetId"], main)
        if table_or_none is None or not _leads_out(table_or_none, public=public):
            continue
        best = chosen.get(subnet["AvailabilityZone"])
        if best is None or _room(subnet) > _room(best):
            chosen[subnet["AvailabilityZone"]] = subnet
    return {zone: subnet["SubnetId"] for zone, subnet in sorted(chosen.items())}


def _leads_out(table: Mapping[str, Any], *, public: bool) -> bool:
    for route in table.get("Routes", ()):
        destination = route.get("DestinationCidrBlock")
        if destination is None or ipaddress.ip_network(destination).prefixlen != 0:
            continue
        if route.get("State", "active") == "active":
            return not public or str(route.get("GatewayId", "")).startswith("igw-")
    return False


def _room(subnet: Mapping[str, Any]) -> int:
    return int(subnet.get("AvailableIpAddressCount", 0))
