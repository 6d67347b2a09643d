"""Gateways on EC2, against its API without hosts behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack.backends.aws import AwsBackend, AwsGateways
from prefect_dstack.backends.aws.dns import zone_of
from prefect_dstack.backends.base import Instance
from prefect_dstack.configurations import GatewayConfiguration, ServiceConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import requirements_of
from prefect_dstack.errors import (
    CapacityError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    ProvisioningError,
)
from tests.testbed.ec2.account import Account

pytestmark = pytest.mark.integration

Make = Callable[..., AwsBackend]


@pytest.fixture
def backend(aws: Account, backend: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(*regions: str, **settings: Any) -> AwsBackend:
        made = backend(*regions, **settings)
        account = made.account

        def ready(region: str, identifier: str, *_: Any, address: str | None = None, **__: Any) -> Any:
            instance = account.running(region, identifier)
            return instance.model_copy(update={"address": address or instance.address})

        monkeypatch.setattr(account, "ready", ready)
        return made

    return make


def gateway(**keys: Any) -> GatewayConfiguration:
    return GatewayConfiguration(backend="aws", **keys)


def hosted_zone(aws: Account, name: str, *, private: bool = False) -> str:
    client = aws.client("route53")
    options: dict[str, Any] = {}
    if private:
        vpc = aws.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
        options["VPC"] = {"VPCRegion": "us-east-1", "VPCId": vpc}
    identifier: str = client.create_hosted_zone(
        Name=name, CallerReference=f"{name}{private}", HostedZoneConfig={"PrivateZone": private}, **options
    )["HostedZone"]["Id"]
    return identifier


def records(aws: Account, zone: str) -> dict[str, list[str]]:
    listed = aws.client("route53").list_resource_record_sets(HostedZoneId=zone)["ResourceRecordSets"]
    return {
        record["Name"].replace("\\052", "*"): [value["Value"] for value in record["ResourceRecords"]]
        for record in listed
        if record["Type"] == "A"
    }


def open_to_everybody(aws: Account) -> set[int]:
    groups = aws.client("ec2").describe_security_groups()["SecurityGroups"]
    (group,) = [g for g in groups if g["GroupName"] == "prefect-dstack-gateway"]
    return {
        permission["FromPort"]
        for permission in group["IpPermissions"]
        if {"0.0.0.0/0"} & {entry["CidrIp"] for entry in permission["IpRanges"]}
        and {"::/0"} & {entry["CidrIpv6"] for entry in permission["Ipv6Ranges"]}
    }


def test_a_gateway_has_an_address_that_stays_and_leaves_nothing(
    aws: Account, backend: Make, told: list[str]
) -> None:
    zone = hosted_zone(aws, "example.com")
    gateways = AwsGateways(backend())
    created = gateways.create("front", gateway(domain="models.example.com"), told.append)
    (address,) = aws.client("ec2").describe_addresses()["Addresses"]
    assert created.instance.address == address["PublicIp"]
    assert address["InstanceId"] == created.instance.id
    assert created.instance.instance_type == "t3.small"
    assert created.instance.name == "front"
    assert created.missing_records == ()
    assert records(aws, zone) == {
        "models.example.com.": [address["PublicIp"]],
        "*.models.example.com.": [address["PublicIp"]],
    }
    assert open_to_everybody(aws) == {80, 443}
    assert [instance.id for instance in gateways.instances()] == [created.instance.id]
    gateways.delete("front", "models.example.com")
    assert aws.leftovers() == {}
    gateways.delete("front", "models.example.com")


def test_created_twice_it_is_found(aws: Account, backend: Make, told: list[str]) -> None:
    hosted_zone(aws, "example.com")
    first = AwsGateways(backend()).create("front", gateway(domain="example.com"), told.append)
    second = AwsGateways(backend()).create("front", gateway(domain="example.com"), told.append)
    assert second == first
    assert aws.requests()["RunInstances"] == 1
    assert aws.requests()["AllocateAddress"] == 1


def test_without_its_zone_in_the_account_the_records_to_create_are_told(
    aws: Account, backend: Make, told: list[str]
) -> None:
    hosted_zone(aws, "example.com", private=True)
    hosted_zone(aws, "ample.com")
    created = AwsGateways(backend()).create("front", gateway(domain="example.com"), told.append)
    assert created.missing_records == tuple(
        f"{name} 60 IN A {created.instance.address}" for name in ("example.com.", "*.example.com.")
    )
    assert f"aws: please create the DNS record {created.missing_records[1]}" in told


def test_a_domain_that_leads_elsewhere_is_left_alone(aws: Account, backend: Make, told: list[str]) -> None:
    zone = hosted_zone(aws, "example.com")
    foreign = {
        "Name": "*.example.com",
        "Type": "A",
        "TTL": 60,
        "ResourceRecords": [{"Value": "203.0.113.5"}],
    }
    aws.client("route53").change_resource_record_sets(
        HostedZoneId=zone, ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": foreign}]}
    )
    gateways = AwsGateways(backend())
    with pytest.raises(ConflictError, match=r"\*\.example\.com has a record A to 203\.0\.113\.5 already"):
        gateways.create("front", gateway(domain="example.com"), told.append)
    assert records(aws, zone) == {"*.example.com.": ["203.0.113.5"]}
    assert list(aws.leftovers()) == ["records"]


def test_ports_are_open_only_while_a_gateway_needs_them(aws: Account, backend: Make, told: list[str]) -> None:
    gateways = AwsGateways(backend())
    gateways.create("front", gateway(port=8080), told.append)
    gateways.create("back", gateway(), told.append)
    assert open_to_everybody(aws) == {80, 443, 8080}
    gateways.open_ports("back", [9000, 9001])
    assert open_to_everybody(aws) == {80, 443, 8080, 9000, 9001}
    gateways.open_ports("back", [9001])
    assert open_to_everybody(aws) == {80, 443, 8080, 9001}
    with pytest.raises(NotFoundError, match="no gateway 'side'"):
        gateways.open_ports("side", [1])


def test_created_again_it_keeps_the_ports_that_its_services_opened(
    aws: Account, backend: Make, told: list[str]
) -> None:
    gateways = AwsGateways(backend())
    gateways.create("front", gateway(), told.append)
    gateways.open_ports("front", [9000])
    gateways.create("front", gateway(), told.append)
    assert open_to_everybody(aws) == {80, 443, 9000}


def test_a_replica_that_is_provisioned_leaves_the_gateways_ports_open(
    aws: Account, backend: Make, told: list[str]
) -> None:
    AwsGateways(backend()).create("front", gateway(port=8080), told.append)
    replicas = backend()
    service = requirements_of(ServiceConfiguration(port=8000, image="app", instance_types=["t3.small"]))
    instance = replicas.provision(
        replicas.offers(service), Stamp(service="s", revision=1, replica=0), service, told.append
    )
    assert open_to_everybody(aws) == {80, 443, 8080}
    assert replicas.instances() == [instance]
    replicas.terminate(instance)
    assert open_to_everybody(aws) == {80, 443, 8080}


def test_an_instance_profile_is_for_replicas_alone_and_within_reach_of_their_containers(
    aws: Account, backend: Make, told: list[str]
) -> None:
    aws.client("iam").create_instance_profile(InstanceProfileName="reads-models")
    made = backend(instance_profile="reads-models")
    service = requirements_of(ServiceConfiguration(port=8000, image="app", instance_types=["t3.small"]))
    stamp = Stamp(service="s", revision=1, replica=0)
    replica = made.provision(made.offers(service), stamp, service, told.append)
    front = AwsGateways(made).create("front", gateway(), told.append).instance

    def described(instance: Instance) -> dict[str, Any]:
        found = aws.client("ec2").describe_instances(InstanceIds=[instance.id])
        entry: dict[str, Any] = found["Reservations"][0]["Instances"][0]
        return entry

    assert described(replica)["IamInstanceProfile"]["Arn"].endswith("/reads-models")
    assert described(replica)["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert "IamInstanceProfile" not in described(front)
    assert described(front)["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_a_private_gateway_gets_no_public_address(aws: Account, backend: Make, told: list[str]) -> None:
    hosted_zone(aws, "example.com")
    made = backend(public_ips=False)
    created = AwsGateways(made).create("front", gateway(domain="example.com", public_ip=False), told.append)
    assert created.instance.address == created.instance.private_address
    assert aws.client("ec2").describe_addresses()["Addresses"] == []
    AwsGateways(made).delete("front", "example.com")
    assert aws.leftovers() == {}


def test_without_capacity_the_next_zone_is_tried_and_nothing_stays_without_any(
    aws: Account, backend: Make, told: list[str]
) -> None:
    full = {"code": "InsufficientInstanceCapacity", "status": 500}
    aws.fault("RunInstances", **full, where={"zone": "us-east-1a"})
    gateways = AwsGateways(backend())
    created = gateways.create("front", gateway(), told.append)
    assert created.instance.details["zone"] != "us-east-1a"
    gateways.delete("front")
    aws.fault("RunInstances", **full)
    with pytest.raises(CapacityError, match=r"gateway front: .*InsufficientInstanceCapacity"):
        gateways.create("front", gateway(), told.append)
    assert aws.leftovers() == {}


@pytest.mark.parametrize("action", ["AllocateAddress", "AssociateAddress", "CreateTags"])
def test_what_fails_half_way_leaves_nothing(
    aws: Account, backend: Make, told: list[str], action: str
) -> None:
    aws.fault(action, code="UnauthorizedOperation", status=403)
    with pytest.raises(ProvisioningError, match=f"{action} in us-east-1: UnauthorizedOperation"):
        AwsGateways(backend()).create("front", gateway(), told.append)
    assert aws.leftovers() == {}


def test_a_region_or_type_that_cannot_be_is_the_users_mistake(backend: Make) -> None:
    gateways = AwsGateways(backend())
    with pytest.raises(ConfigurationError, match="'eu-west-1' is not one of the AWS backend's regions"):
        gateways.create("front", gateway(region="eu-west-1"))
    with pytest.raises(ConfigurationError, match=r"no usable instance type 'z9.huge'"):
        gateways.create("front", gateway(instance_type="z9.huge"))


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("example.com", "/a"),
        ("x.example.com", "/a"),
        ("deep.example.com", "/b"),
        ("x.DEEP.example.com", "/b"),
        ("notexample.com", None),
        ("com", None),
        ("inner.net", None),
    ],
)
def test_the_zone_with_the_longest_name_is_taken(domain: str, expected: str | None) -> None:
    zones: list[dict[str, Any]] = [
        {"Id": "/a", "Name": "example.com."},
        {"Id": "/b", "Name": "deep.example.com."},
        {"Id": "/c", "Name": "inner.net.", "Config": {"PrivateZone": True}},
    ]
    assert zone_of(zones, domain) == expected


def test_a_gateway_of_which_only_the_name_is_known_takes_its_records_along(
    aws: Account, backend: Make, told: list[str]
) -> None:
    zone = hosted_zone(aws, "example.com")
    AwsGateways(backend()).create("front", gateway(domain="example.com"), told.append)
    AwsGateways(backend()).delete("front")
    assert records(aws, zone) == {}
    assert aws.leftovers() == {}


def test_a_gateway_that_moves_to_another_domain_leaves_the_old_one(
    aws: Account, backend: Make, told: list[str]
) -> None:
    zone = hosted_zone(aws, "example.com")
    gateways = AwsGateways(backend())
    gateways.create("front", gateway(domain="a.example.com"), told.append)
    gateways.create("front", gateway(domain="b.example.com"), told.append)
    assert sorted(records(aws, zone)) == ["*.b.example.com.", "b.example.com."]
    gateways.create("front", gateway(), told.append)
    assert records(aws, zone) == {}
    gateways.delete("front")
    assert aws.leftovers() == {}
