from __future__ import annotations

from typing import Any

from prefect_dstack.backends.aws.network import subnet_by_zone


def subnet(name: str, zone: str, room: int = 100) -> dict[str, Any]:
    return {"SubnetId": name, "AvailabilityZone": zone, "AvailableIpAddressCount": room}


def table(*subnets: str, main: bool = False, **route: str) -> dict[str, Any]:
    associations: list[dict[str, Any]] = [{"SubnetId": name} for name in subnets]
    routes = [{"DestinationCidrBlock": "10.0.0.0/16", "GatewayId": "local", "State": "active"}]
    if route:
        routes.append({"DestinationCidrBlock": "0.0.0.0/0", "State": "active", **route})
    return {"Associations": [*associations, *([{"Main": True}] if main else [])], "Routes": routes}


def test_the_roomiest_public_subnet_of_each_zone_is_taken() -> None:
    subnets = [subnet("s1", "a", 5), subnet("s2", "a", 50), subnet("s3", "b"), subnet("s4", "c")]
    tables = [table(main=True, GatewayId="igw-1"), table("s4")]
    assert subnet_by_zone(subnets, tables, public=True) == {"a": "s2", "b": "s3"}


def test_a_subnet_behind_a_nat_gateway_is_for_private_machines_only() -> None:
    subnets = [subnet("s1", "a")]
    tables = [table(main=True, GatewayId="igw-1"), table("s1", NatGatewayId="nat-1")]
    assert subnet_by_zone(subnets, tables, public=True) == {}
    assert subnet_by_zone(subnets, tables, public=False) == {"a": "s1"}


def test_a_route_into_a_black_hole_leads_nowhere() -> None:
    tables = [table(main=True, GatewayId="igw-1", State="blackhole")]
    assert subnet_by_zone([subnet("s1", "a")], tables, public=False) == {}


def test_a_vpc_without_any_table_has_no_way_out() -> None:
    assert subnet_by_zone([subnet("s1", "a")], [], public=True) == {}
