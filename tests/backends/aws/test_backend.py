"""The backend against EC2's API, without hosts behind the instances."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.backends.aws import AwsBackend
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements, requirements_of
from prefect_dstack.errors import (
    CapacityError,
    ConfigurationError,
    HostKeyError,
    HostUnreachableError,
    NoOfferError,
    ProvisioningError,
)
from tests.testbed.ec2 import catalogue
from tests.testbed.ec2.account import Account

pytestmark = pytest.mark.integration

Make = Callable[..., AwsBackend]

STAMP = Stamp(service="hello", revision=1, replica=0, flow_run="flow-run-1")
OUT = {
    "code": "InsufficientInstanceCapacity",
    "message": "We currently do not have sufficient",
    "status": 500,
}


def service(**keys: Any) -> Requirements:
    return requirements_of(ServiceConfiguration(port=8000, image="app", **keys))


GPU = service(resources={"gpu": "24GB:1"}, spot_policy="auto", instance_types=["g5.xlarge", "g6.xlarge"])
CPU = service(instance_types=["t3.small"])


def attempts(told: list[str]) -> list[str]:
    return [line.partition("asking for ")[2] for line in told if "asking for" in line]


def ec2_instances(aws: Account, region: str = "us-east-1") -> list[dict[str, Any]]:
    found = aws.client("ec2", region).describe_instances()["Reservations"]
    live = ("pending", "running")
    return [i for reservation in found for i in reservation["Instances"] if i["State"]["Name"] in live]


def test_offers_have_prices_and_zones(backend: Make) -> None:
    offers = backend("us-east-1", "eu-west-1").offers(GPU)
    assert [offer.price for offer in offers] == sorted(offer.price or 0 for offer in offers)
    first = offers[0]
    assert (first.instance_type, first.spot) == ("g6.xlarge", True)
    assert first.price == pytest.approx(0.8048 * catalogue.SPOT, rel=1e-4)
    assert first.gpus[0].memory_gb == 24
    assert first.zones


def test_the_catalogue_is_asked_for_once_a_day(aws: Account, backend: Make) -> None:
    backend("us-east-1").offers(GPU)
    before = aws.requests()
    backend("us-east-1").offers(GPU)
    after = aws.requests()
    grown = {action for action, count in after.items() if count > before.get(action, 0)}
    assert grown == {"GetCallerIdentity"}


def test_prices_that_cannot_be_had_are_unknown_and_this_is_said(
    aws: Account, tmp_path: Path, told: list[str]
) -> None:
    aws.order("settings", prices=False)
    aws.fault("DescribeSpotPriceHistory", code="UnauthorizedOperation", status=403)
    made = aws.backend(tmp_path)
    offers = made.offers(GPU, told.append)
    assert offers
    assert {offer.price for offer in offers} == {None}
    assert any(
        "on-demand prices unknown: aws: GetProducts in us-east-1: AccessDenied" in line for line in told
    )
    assert any("spot prices unknown" in line for line in told)
    capped = GPU.model_copy(update={"max_price": 5.0})
    with pytest.raises(NoOfferError, match="max_price cannot be checked"):
        made.offers(capped)


def test_a_machine_is_created_as_safe_as_can_be(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend(tags={"team": "ml"})
    configuration = service(
        instance_types=["t3.small"], resources={"disk": "30GB"}, tags={"cost-center": "42"}
    )
    instance = made.provision(made.offers(configuration), STAMP, configuration, told.append)
    (entry,) = ec2_instances(aws)
    assert entry["InstanceId"] == instance.id
    assert entry["MetadataOptions"]["HttpTokens"] == "required"
    assert entry["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    tags = {tag["Key"]: tag["Value"] for tag in entry["Tags"]}
    assert (
        tags.items()
        >= {
            "prefect-dstack:service": "hello",
            "prefect-dstack:revision": "1",
            "prefect-dstack:replica": "0",
            "prefect-dstack:flow-run": "flow-run-1",
            "prefect-dstack:role": "replica",
            "team": "ml",
            "cost-center": "42",
        }.items()
    )
    client = aws.client("ec2")
    (volume,) = client.describe_volumes()["Volumes"]
    assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 30, "gp3")
    assert {"Key": "prefect-dstack:service", "Value": "hello"} in volume["Tags"]
    assert made.stamp(instance) == STAMP
    assert instance.price == 0.0208
    assert made.instances() == [instance]
    made.terminate(instance)
    assert made.instances() == []
    assert aws.leftovers() == {}


def test_the_private_host_key_is_kept_nowhere(
    aws: Account, backend: Make, home: Path, told: list[str]
) -> None:
    made = backend()
    instance = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert str(instance.details["host_key"]).startswith("ssh-ed25519 AAAA")
    assert "PRIVATE" not in instance.model_dump_json()
    assert "PRIVATE" not in "".join(told)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"PRIVATE" in path.read_bytes()] == ["id_ed25519"]


def test_only_gateways_and_the_deployer_reach_a_replica(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend(ssh_from=["198.51.100.7/32"])
    made.provision(made.offers(CPU), STAMP, CPU, told.append)
    client = aws.client("ec2")
    groups = {g["GroupName"]: g for g in client.describe_security_groups()["SecurityGroups"]}
    gateway = groups["prefect-dstack-gateway"]["GroupId"]
    rules = {
        (
            permission["FromPort"],
            permission["ToPort"],
            *[entry["CidrIp"] for entry in permission["IpRanges"]],
            *[pair["GroupId"] for pair in permission["UserIdGroupPairs"]],
        )
        for permission in groups["prefect-dstack-replica"]["IpPermissions"]
    }
    assert {frozenset(rule) for rule in rules} == {
        frozenset({22, "198.51.100.7/32", gateway}),
        frozenset({20000, gateway}),
    }
    (entry,) = ec2_instances(aws)
    assert [g["GroupName"] for g in entry["NetworkInterfaces"][0]["Groups"]] == ["prefect-dstack-replica"]


def test_replicas_that_connect_to_each_other_reach_each_other_and_nobody_else_does(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    offers = made.offers(CPU)
    assert {offer.network for offer in offers} == {""}
    alone = made.provision(offers, STAMP, CPU, told.append)
    needs = CPU.model_copy(update={"interconnected": True})
    offers = made.offers(needs)
    other = STAMP.model_copy(update={"service": "router"})
    peer = made.provision(offers, other, needs, told.append)
    assert {offer.network for offer in offers if offer.region == peer.region} == {peer.network}
    client = aws.client("ec2")
    groups = {g["GroupName"]: g for g in client.describe_security_groups()["SecurityGroups"]}
    gateway, peers = (groups[f"prefect-dstack-{role}"]["GroupId"] for role in ("gateway", "peer"))
    (everything,) = groups["prefect-dstack-peer"]["IpPermissions"]
    assert everything["IpProtocol"] == "-1"
    assert {pair["GroupId"] for pair in everything["UserIdGroupPairs"]} == {gateway, peers}
    names = {
        entry["InstanceId"]: sorted(g["GroupName"] for g in entry["NetworkInterfaces"][0]["Groups"])
        for entry in ec2_instances(aws)
    }
    assert names == {
        alone.id: ["prefect-dstack-replica"],
        peer.id: ["prefect-dstack-peer", "prefect-dstack-replica"],
    }
    for instance in (alone, peer):
        made.terminate(instance)
    left = {g["GroupName"] for g in client.describe_security_groups()["SecurityGroups"]}
    assert not left & groups.keys() - {"default"}


def test_a_rule_that_somebody_else_added_to_our_group_goes(aws: Account, backend: Make) -> None:
    made = backend()
    group = made.account.groups("us-east-1").replica
    client = aws.client("ec2")
    everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=everything)
    colleague = [
        {
            "IpProtocol": "tcp",
            "FromPort": 22,
            "ToPort": 22,
            "IpRanges": [{"CidrIp": "203.0.113.9/32", "Description": "deployer somebodyelse"}],
        }
    ]
    client.authorize_security_group_ingress(GroupId=group, IpPermissions=colleague)
    backend().account.groups("us-east-1")
    (described,) = client.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    sources = {r["CidrIp"] for p in described["IpPermissions"] for r in p["IpRanges"]}
    assert sources == {"192.0.2.0/24", "203.0.113.9/32"}
    moved = backend(ssh_from=["192.0.2.9/32"])
    moved.account.groups("us-east-1")
    (described,) = client.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    sources = {r["CidrIp"] for p in described["IpPermissions"] for r in p["IpRanges"]}
    assert sources == {"192.0.2.9/32", "203.0.113.9/32"}


def test_a_security_group_of_ones_own_is_used_and_left_alone(
    aws: Account, backend: Make, told: list[str]
) -> None:
    client = aws.client("ec2")
    vpc = client.describe_vpcs()["Vpcs"][0]["VpcId"]
    own = client.create_security_group(GroupName="mine", Description="mine", VpcId=vpc)["GroupId"]
    made = backend(security_group_id=own)
    instance = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    (entry,) = ec2_instances(aws)
    assert [g["GroupId"] for g in entry["NetworkInterfaces"][0]["Groups"]] == [own]
    made.terminate(instance)
    (described,) = client.describe_security_groups(GroupIds=[own])["SecurityGroups"]
    assert described["IpPermissions"] == []


def test_run_twice_with_one_stamp_it_finds_the_first_result(
    aws: Account, backend: Make, told: list[str]
) -> None:
    first = backend().provision(backend().offers(CPU), STAMP, CPU, told.append)
    again = STAMP.model_copy(update={"flow_run": "flow-run-2"})
    second = backend().provision(backend().offers(CPU), again, CPU, told.append)
    assert second == first
    assert len(ec2_instances(aws)) == 1
    assert aws.requests()["RunInstances"] == 1


def test_one_machine_too_many_is_given_back(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    first = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    client = aws.client("ec2")
    copy = client.run_instances(
        ImageId=catalogue.UBUNTU,
        MinCount=1,
        MaxCount=1,
        InstanceType="t3.small",
        ClientToken="another",
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": ec2_instances(aws)[0]["Tags"]},
        ],
    )["Instances"][0]["InstanceId"]
    kept = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert [i["InstanceId"] for i in ec2_instances(aws)] == [kept.id]
    assert kept.id in (first.id, copy)
    assert any("is one too many" in line for line in told)


def test_without_capacity_the_next_zone_type_region_and_market_are_tried(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend("us-east-1", "eu-west-1")
    offers = made.offers(GPU)
    aws.fault("RunInstances", **OUT, where={"market": "spot"})
    aws.fault("RunInstances", **OUT, where={"region": "us-east-1"})
    instance = made.provision(offers, STAMP, GPU, told.append)
    assert (instance.region, instance.spot) == ("eu-west-1", False)
    tried = attempts(told)
    expected = [
        f"{offer.instance_type} {'spot' if offer.spot else 'on-demand'} in {zone}"
        for offer in offers
        for zone in offer.zones
    ]
    assert tried == expected[: len(tried)]
    assert tried[-1].endswith("on-demand in eu-west-1a")
    refused = [line for line in told if "InsufficientInstanceCapacity: We currently do not have" in line]
    assert len(refused) == len(tried) - 1
    assert aws.requests()["RunInstances"] == len(tried)


def test_no_capacity_anywhere_is_a_capacity_error_and_nothing_is_left(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    aws.fault("RunInstances", **OUT)
    with pytest.raises(
        CapacityError, match=r"hello-1-0: no capacity in \d+ attempts, the last one: .*do not have"
    ):
        made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert aws.leftovers() == {}


def test_of_ten_at_once_those_without_capacity_do_not_harm_the_others(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend(availability_zones=["us-east-1a"])
    offers = made.offers(CPU)
    aws.fault("RunInstances", **OUT, times=5)

    def provision(number: int) -> str | None:
        try:
            return made.provision(offers, STAMP.model_copy(update={"replica": number}), CPU, told.append).id
        except CapacityError:
            return None

    with ThreadPoolExecutor(10) as pool:
        got = [identifier for identifier in pool.map(provision, range(10)) if identifier]
    assert len(got) == 5
    assert {entry["InstanceId"] for entry in ec2_instances(aws)} == set(got)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(made.terminate, made.instances()))
    assert aws.leftovers() == {}


def test_a_spot_price_that_is_too_low_leads_on(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    aws.fault("RunInstances", code="SpotMaxPriceTooLow", message="Your Spot request price is lower", times=2)
    instance = made.provision(made.offers(GPU), STAMP, GPU, told.append)
    assert len(attempts(told)) == 3
    assert instance.spot


def test_a_quota_is_not_tried_in_every_zone(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    aws.fault("RunInstances", code="MaxSpotInstanceCountExceeded", where={"market": "spot"})
    instance = made.provision(made.offers(GPU), STAMP, GPU, told.append)
    assert not instance.spot
    assert sum("spot" in attempt for attempt in attempts(told)) == 2


def test_throttling_is_waited_for(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    offers = made.offers(CPU)
    aws.fault("RunInstances", code="RequestLimitExceeded", status=503, times=3)
    aws.fault("DescribeInstances", code="RequestLimitExceeded", status=503, times=3)
    made.provision(offers, STAMP, CPU, told.append)
    assert len(attempts(told)) == 1
    assert len(ec2_instances(aws)) == 1


def test_a_lost_answer_does_not_make_a_second_machine(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    offers = made.offers(CPU)
    aws.fault("RunInstances", kind="lose-answer", times=1)
    instance = made.provision(offers, STAMP, CPU, told.append)
    assert [i["InstanceId"] for i in ec2_instances(aws)] == [instance.id]
    assert aws.requests()["RunInstances"] == 1
    assert any("although its answer was lost" in line for line in told)


def test_a_lost_answer_before_anything_was_done_is_asked_again(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    offers = made.offers(CPU)
    aws.fault("RunInstances", code="InternalError", status=500, times=2)
    made.provision(offers, STAMP, CPU, told.append)
    assert aws.requests()["RunInstances"] == 3
    assert len(ec2_instances(aws)) == 1


def test_a_token_of_a_machine_that_was_given_back_is_renewed(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    made.terminate(made.provision(made.offers(CPU), STAMP, CPU, told.append))
    made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert len(ec2_instances(aws)) == 1
    # The first, the one with its token, and the one with a new token.
    assert aws.requests()["RunInstances"] == 3


def test_a_group_that_another_process_removed_is_made_again(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    offers = made.offers(CPU)
    made.account.groups("us-east-1")
    backend().cleanup()
    assert aws.leftovers() == {}
    made.provision(offers, STAMP, CPU, told.append)
    assert len(ec2_instances(aws)) == 1


def test_no_permission_fails_at_once_with_awss_words(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    offers = made.offers(GPU)
    aws.fault("RunInstances", code="UnauthorizedOperation", message="You are not authorized", status=403)
    with pytest.raises(ProvisioningError, match=r"UnauthorizedOperation: You are not authorized; .*doctor"):
        made.provision(offers, STAMP, GPU, told.append)
    assert len(attempts(told)) == 1
    assert aws.leftovers() == {}


def test_wrong_credentials_fail_at_once(aws: Account, home: Path) -> None:
    with pytest.raises(ProvisioningError, match=r"InvalidClientTokenId.*check the AWS credentials"):
        aws.backend(home, key_id="AKIAWRONG").offers(CPU)
    assert aws.requests() == {"GetCallerIdentity": 1}


def test_a_region_that_does_not_exist_is_the_users_mistake(aws: Account, home: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"AWS has no region 'eu-wets-1'; did you mean 'eu-west-1'\?"
    ):
        aws.backend(home, "us-east-1", "eu-wets-1").offers(CPU)


def test_nothing_is_created_when_nothing_fits(aws: Account, backend: Make) -> None:
    made = backend()
    for impossible in (service(resources={"cpu": "4000.."}), service(max_price=0.0001)):
        with pytest.raises(NoOfferError, match=r"^aws: us-east-1: [^\n]+$"):
            made.offers(impossible)
    assert aws.leftovers() == {}


def test_a_default_vpc_without_internet_is_a_clear_error(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend("eu-central-1")
    with pytest.raises(
        ProvisioningError, match=r"no subnet with a route to an internet gateway.*add one, or set"
    ):
        made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert aws.leftovers("eu-central-1") == {}


def test_without_a_default_vpc_one_must_be_named(aws: Account, backend: Make, told: list[str]) -> None:
    client = aws.client("ec2", "eu-central-1")
    (vpc,) = client.describe_vpcs()["Vpcs"]
    for subnet in client.describe_subnets()["Subnets"]:
        client.delete_subnet(SubnetId=subnet["SubnetId"])
    client.delete_vpc(VpcId=vpc["VpcId"])
    made = backend("eu-central-1")
    with pytest.raises(ProvisioningError, match="no default VPC there; set vpc_id"):
        made.provision(made.offers(CPU), STAMP, CPU, told.append)


def test_images_are_found_by_name_where_their_parameters_cannot_be_read(
    aws: Account, backend: Make, told: list[str]
) -> None:
    aws.order("settings", parameters=False)
    made = backend()
    made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert ec2_instances(aws)[0]["ImageId"] == catalogue.UBUNTU


def test_a_machine_with_a_gpu_boots_from_the_image_with_its_driver(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    instance = made.provision(made.offers(GPU), STAMP, GPU, told.append)
    assert ec2_instances(aws)[0]["ImageId"] == catalogue.DEEP_LEARNING
    assert instance.gpu_devices == ("0",)


def test_an_arm_machine_boots_from_an_arm_image(aws: Account, backend: Make, told: list[str]) -> None:
    arm = service(resources={"cpu": "arm:2"}, instance_types=["t4g.small"])
    made = backend()
    made.provision(made.offers(arm), STAMP, arm, told.append)
    assert ec2_instances(aws)[0]["ImageId"] == catalogue.UBUNTU_ARM


def test_an_image_of_ones_own_is_used(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend(image=catalogue.DEEP_LEARNING)
    made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert ec2_instances(aws)[0]["ImageId"] == catalogue.DEEP_LEARNING


def test_termination_is_asked_for_until_aws_confirms_it(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    instance = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    aws.fault("TerminateInstances", code="RequestLimitExceeded", status=503, times=4)
    aws.fault("DeleteSecurityGroup", code="InternalError", status=500, times=2)
    made.terminate(instance)
    made.terminate(instance)
    assert aws.leftovers() == {}


def test_a_group_that_is_still_in_use_for_a_moment_is_deleted_a_little_later(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    instance = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    aws.fault("DeleteSecurityGroup", code="DependencyViolation", times=4)
    made.terminate(instance)
    assert aws.leftovers() == {}


def test_an_address_whose_gateway_is_gone_is_released(aws: Account, backend: Make) -> None:
    aws.client("ec2").allocate_address(
        Domain="vpc",
        TagSpecifications=[
            {"ResourceType": "elastic-ip", "Tags": [{"Key": "prefect-dstack:role", "Value": "gateway"}]}
        ],
    )
    aws.client("ec2").allocate_address(Domain="vpc")
    backend().cleanup()
    assert len(aws.client("ec2").describe_addresses()["Addresses"]) == 1


def test_security_groups_stay_while_a_machine_of_ours_lives(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend()
    first = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    other = STAMP.model_copy(update={"service": "other"})
    second = made.provision(made.offers(CPU), other, CPU, told.append)
    made.terminate(first)
    assert set(aws.leftovers()["us-east-1 groups"]) == {"prefect-dstack-gateway", "prefect-dstack-replica"}
    made.terminate(second)
    assert aws.leftovers() == {}


def test_machines_are_found_by_their_tags_in_every_region(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend("us-east-1", "eu-west-1")
    offers = made.offers(CPU)
    stamps = [STAMP.model_copy(update={"replica": number}) for number in range(2)]
    for stamp, region in zip(stamps, ("us-east-1", "eu-west-1"), strict=True):
        made.provision([offer for offer in offers if offer.region == region], stamp, CPU, told.append)
    aws.client("ec2").run_instances(
        ImageId=catalogue.UBUNTU, MinCount=1, MaxCount=1, InstanceType="t3.small", ClientToken="strange"
    )
    found = {instance.region: made.stamp(instance) for instance in made.instances()}
    assert found == {"us-east-1": stamps[0], "eu-west-1": stamps[1]}


def test_a_machine_without_its_pinned_key_is_not_connected_to(backend: Make, told: list[str]) -> None:
    made = backend()
    instance = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    with pytest.raises(HostKeyError, match="host-key is gone"):
        made.machine(instance.model_copy(update={"details": {}}))
    with pytest.raises(HostUnreachableError, match="no address"):
        made.machine(instance.model_copy(update={"address": ""}))


def test_an_interrupted_machine_is_no_longer_listed(aws: Account, backend: Make, told: list[str]) -> None:
    made = backend()
    instance = made.provision(made.offers(GPU), STAMP, GPU, told.append)
    aws.order("interrupt", instance=instance.id)
    assert made.instances() == []


def test_a_region_that_cannot_be_asked_does_not_hide_the_others(
    aws: Account, backend: Make, told: list[str]
) -> None:
    made = backend("us-east-1", "eu-west-1")
    offers = [offer for offer in made.offers(CPU) if offer.region == "us-east-1"]
    kept = made.provision(offers, STAMP, CPU, told.append)
    aws.fault("DescribeInstances", code="UnauthorizedOperation", status=403, where={"region": "eu-west-1"})
    machine, silent = sorted(made.instances(), key=lambda instance: instance.name, reverse=True)
    assert (machine.id, made.stamp(machine)) == (kept.id, STAMP)
    assert (silent.name, made.stamp(silent)) == ("aws eu-west-1", None)
    with pytest.raises(ProvisioningError, match="DescribeInstances in eu-west-1: UnauthorizedOperation"):
        made.machine(silent)
    with pytest.raises(ProvisioningError, match="DescribeInstances in eu-west-1: UnauthorizedOperation"):
        made.cleanup()


def test_a_machine_lets_in_whoever_reaches_for_it_from_another_address(
    aws: Account, backend: Make, told: list[str]
) -> None:
    def let_in() -> set[str]:
        groups = aws.client("ec2").describe_security_groups()["SecurityGroups"]
        rules = [rule for group in groups for rule in group["IpPermissions"] if rule.get("FromPort") == 22]
        return {entry["CidrIp"] for rule in rules for entry in rule["IpRanges"]}

    made = backend(ssh_from=("192.0.2.1/32",))
    instance = made.provision(made.offers(CPU), STAMP, CPU, told.append)
    assert let_in() == {"192.0.2.1/32"}
    moved = backend(ssh_from=("192.0.2.2/32",))
    moved.machine(instance)
    assert let_in() == {"192.0.2.2/32"}
    aws.fault("DescribeSecurityGroups", code="UnauthorizedOperation", status=403)
    backend(ssh_from=("192.0.2.3/32",)).machine(instance)


def test_spot_machines_that_are_about_to_be_taken_back_are_known(aws: Account, backend: Make) -> None:
    made = backend("us-east-1", "eu-west-1")
    stamps = [STAMP, STAMP.model_copy(update={"replica": 1})]
    spot = [offer for offer in made.offers(GPU) if offer.spot]
    found = [made.provision(spot, stamp, GPU, lambda _: None) for stamp in stamps]
    assert made.interrupted() == []

    aws.order("announce", instance=found[1].id)

    (marked,) = made.interrupted()
    assert (marked.id, made.stamp(marked)) == (found[1].id, stamps[1])
    for instance in found:
        made.terminate(instance)
    assert made.interrupted() == []
