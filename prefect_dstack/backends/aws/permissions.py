"""What the credentials must allow: checked with dry runs, and written as an IAM policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.aws import tags as tagging
from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.aws.errors import CREDENTIALS, PERMISSIONS, AwsError, code_of, words
from prefect_dstack.backends.aws.settings import AwsSettings

__all__ = ["PermissionCheck", "check_permissions", "least_policy"]

READS = (
    "ec2:DescribeAddresses",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeRegions",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSpotInstanceRequests",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeSubnets",
    "ec2:DescribeVolumes",
    "ec2:DescribeVpcs",
    "pricing:GetProducts",
    "sts:GetCallerIdentity",
)
CREATES = ("ec2:AllocateAddress", "ec2:CreateSecurityGroup", "ec2:RunInstances")
CHANGES = (
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteSecurityGroup",
    "ec2:DeleteVolume",
    "ec2:DisassociateAddress",
    "ec2:GetConsoleOutput",
    "ec2:ReleaseAddress",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:TerminateInstances",
)
DNS = (
    "route53:ChangeResourceRecordSets",
    "route53:GetChange",
    "route53:ListHostedZones",
    "route53:ListResourceRecordSets",
)


# What is answered to those who are allowed to do what cannot be done.
ABSENT = ("DryRunOperation", "ParameterNotFound", "NoSuchHostedZone", "NoSuchChange")


class PermissionCheck(BaseModel):
    """Whether the credentials allow one action."""

    model_config = ConfigDict(frozen=True)

    action: str = Field(description="As IAM spells it, for example `ec2:RunInstances`.")
    region: str = Field(description="Where it was tried.")
    outcome: Literal["allowed", "denied", "unknown"] = Field(
        description="`unknown`: AWS answered something else, or there is no dry run of it."
    )
    detail: str = Field(default="", description="AWS's own words.")


def check_permissions(aws: Aws, region: str | None = None) -> list[PermissionCheck]:
    """Try every action that is needed, without doing anything.

    Args:
        aws: The account.
        region: Where; None: the first of the settings.

    Returns:
        One result for each action, in the order in which they are needed. If the credentials are wrong, only
        the first one.
    """
    where = region or aws.settings.regions[0]
    results: list[PermissionCheck] = []
    for action, service, operation, parameters in _probes(aws.settings):
        result = _probe(aws, where, action, service, operation, parameters)
        results.append(result)
        if action == "sts:GetCallerIdentity" and result.outcome != "allowed":
            break
    return results


def least_policy(settings: AwsSettings) -> dict[str, Any]:
    """Return the IAM policy that suffices for these settings, and for no more.

    Args:
        settings: Of the account.

    Returns:
        The policy, ready for `json.dumps`: what is created must carry our tags, and only what carries them
        can be changed or removed.
    """
    partition = _partition(settings.regions[0])
    ours = {"StringEquals": {f"aws:ResourceTag/{tagging.ROLE}": ["replica", "gateway"]}}
    tagged = {"StringEquals": {f"aws:RequestTag/{tagging.ROLE}": ["replica", "gateway"]}}
    somewhere = {"StringEquals": {"aws:RequestedRegion": sorted(settings.regions)}}
    made = (
        "instance",
        "volume",
        "network-interface",
        "spot-instances-request",
        "security-group",
        "elastic-ip",
    )
    statements: list[dict[str, Any]] = [
        {"Sid": "Read", "Effect": "Allow", "Action": sorted(READS), "Resource": "*"},
        {
            "Sid": "FindImages",
            "Effect": "Allow",
            "Action": "ssm:GetParameter",
            "Resource": sorted({f"arn:{partition}:ssm:*::parameter{path}" for path in _parameters(settings)}),
        },
        {
            "Sid": "CreateWithOurTags",
            "Effect": "Allow",
            "Action": sorted(CREATES),
            "Resource": [f"arn:{partition}:ec2:*:*:{kind}/*" for kind in made],
            "Condition": {"StringEquals": {**tagged["StringEquals"], **somewhere["StringEquals"]}},
        },
        {
            "Sid": "CreateFrom",
            "Effect": "Allow",
            "Action": ["ec2:CreateSecurityGroup", "ec2:RunInstances"],
            "Resource": [
                f"arn:{partition}:ec2:*::image/*",
                f"arn:{partition}:ec2:*::snapshot/*",
                f"arn:{partition}:ec2:*:*:security-group/*",
                f"arn:{partition}:ec2:*:*:subnet/*",
                f"arn:{partition}:ec2:*:*:vpc/*",
            ],
            "Condition": somewhere,
        },
        {
            "Sid": "TagWhatIsCreated",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": f"arn:{partition}:ec2:*:*:*/*",
            "Condition": {
                "StringEquals": {"ec2:CreateAction": [name.partition(":")[2] for name in sorted(CREATES)]}
            },
        },
        {
            "Sid": "ChangeWhatIsOurs",
            "Effect": "Allow",
            "Action": sorted([*CHANGES, "ec2:AssociateAddress", "ec2:CreateTags"]),
            "Resource": f"arn:{partition}:ec2:*:*:*/*",
            "Condition": ours,
        },
        {
            "Sid": "PointDomains",
            "Effect": "Allow",
            "Action": sorted(DNS),
            "Resource": "*",
        },
        {
            "Sid": "FirstSpotInstance",
            "Effect": "Allow",
            "Action": "iam:CreateServiceLinkedRole",
            "Resource": f"arn:{partition}:iam::*:role/aws-service-role/spot.amazonaws.com/*",
            "Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        },
    ]
    if settings.instance_profile:
        statements.append(
            {
                "Sid": "GiveTheInstanceProfile",
                "Effect": "Allow",
                "Action": "iam:PassRole",
                "Resource": f"arn:{partition}:iam::*:role/*",
                "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
            }
        )
    return {"Version": "2012-10-17", "Statement": statements}


def _partition(region: str) -> str:
    for prefix in ("cn", "us-gov"):
        if region.startswith(f"{prefix}-"):
            return f"aws-{prefix}"
    return "aws"


def _parameters(settings: AwsSettings) -> list[str]:
    own = [name for name in (settings.image, settings.gpu_image) if name and name.startswith("/")]
    return ["/aws/service/canonical/*", "/aws/service/deeplearning/*", *own]


Probe = tuple[str, str, str, dict[str, Any]]


def _probes(settings: AwsSettings) -> Sequence[Probe]:
    nothing = "00000000000000000"
    rule = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}]
    tags = {tagging.ROLE: "replica"}
    group = settings.security_group_id or f"sg-{nothing}"
    dry = {"DryRun": True}
    reads = {
        "DescribeAddresses": "describe_addresses",
        "DescribeImages": "describe_images",
        "DescribeInstanceTypeOfferings": "describe_instance_type_offerings",
        "DescribeInstanceTypes": "describe_instance_types",
        "DescribeInstances": "describe_instances",
        "DescribeNetworkInterfaces": "describe_network_interfaces",
        "DescribeRegions": "describe_regions",
        "DescribeRouteTables": "describe_route_tables",
        "DescribeSecurityGroups": "describe_security_groups",
        "DescribeSpotInstanceRequests": "describe_spot_instance_requests",
        "DescribeSpotPriceHistory": "describe_spot_price_history",
        "DescribeSubnets": "describe_subnets",
        "DescribeVolumes": "describe_volumes",
        "DescribeVpcs": "describe_vpcs",
    }
    record = {
        "Action": "UPSERT",
        "ResourceRecordSet": {
            "Name": "prefect-dstack.example.com",
            "Type": "TXT",
            "TTL": 60,
            "ResourceRecords": [{"Value": '"a dry run"'}],
        },
    }
    # Whether it would be allowed is said before anybody looks at what it is about, which does not exist.
    return [
        ("sts:GetCallerIdentity", "sts", "get_caller_identity", {}),
        *((f"ec2:{action}", "ec2", operation, dry) for action, operation in reads.items()),
        (
            "ssm:GetParameter",
            "ssm",
            "get_parameter",
            {"Name": "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"},
        ),
        ("pricing:GetProducts", "pricing", "get_products", {"ServiceCode": "AmazonEC2", "MaxResults": 1}),
        (
            "ec2:RunInstances",
            "ec2",
            "run_instances",
            {
                "ImageId": f"ami-{nothing}",
                "InstanceType": "t3.micro",
                "MinCount": 1,
                "MaxCount": 1,
                "TagSpecifications": tagging.specifications(tags, "instance", "volume", "network-interface"),
                **dry,
            },
        ),
        ("ec2:TerminateInstances", "ec2", "terminate_instances", {"InstanceIds": [f"i-{nothing}"], **dry}),
        (
            "ec2:DeleteNetworkInterface",
            "ec2",
            "delete_network_interface",
            {"NetworkInterfaceId": f"eni-{nothing}", **dry},
        ),
        ("ec2:DeleteVolume", "ec2", "delete_volume", {"VolumeId": f"vol-{nothing}", **dry}),
        ("ec2:GetConsoleOutput", "ec2", "get_console_output", {"InstanceId": f"i-{nothing}", **dry}),
        (
            "ec2:CreateSecurityGroup",
            "ec2",
            "create_security_group",
            {
                "GroupName": "prefect-dstack-replica",
                "Description": "A dry run",
                "TagSpecifications": tagging.specifications(tags, "security-group"),
                **dry,
            },
        ),
        (
            "ec2:AuthorizeSecurityGroupIngress",
            "ec2",
            "authorize_security_group_ingress",
            {"GroupId": group, "IpPermissions": rule, **dry},
        ),
        (
            "ec2:RevokeSecurityGroupIngress",
            "ec2",
            "revoke_security_group_ingress",
            {"GroupId": group, "IpPermissions": rule, **dry},
        ),
        ("ec2:DeleteSecurityGroup", "ec2", "delete_security_group", {"GroupId": group, **dry}),
        ("ec2:AllocateAddress", "ec2", "allocate_address", {"Domain": "vpc", **dry}),
        (
            "ec2:AssociateAddress",
            "ec2",
            "associate_address",
            {"AllocationId": f"eipalloc-{nothing}", "InstanceId": f"i-{nothing}", **dry},
        ),
        (
            "ec2:DisassociateAddress",
            "ec2",
            "disassociate_address",
            {"AssociationId": f"eipassoc-{nothing}", **dry},
        ),
        ("ec2:ReleaseAddress", "ec2", "release_address", {"AllocationId": f"eipalloc-{nothing}", **dry}),
        ("route53:ListHostedZones", "route53", "list_hosted_zones", {"MaxItems": "1"}),
        (
            "route53:ListResourceRecordSets",
            "route53",
            "list_resource_record_sets",
            {"HostedZoneId": f"Z{nothing}", "MaxItems": "1"},
        ),
        (
            "route53:ChangeResourceRecordSets",
            "route53",
            "change_resource_record_sets",
            {"HostedZoneId": f"Z{nothing}", "ChangeBatch": {"Changes": [record]}},
        ),
        ("route53:GetChange", "route53", "get_change", {"Id": f"C{nothing}"}),
    ]


def _probe(
    aws: Aws, region: str, action: str, service: str, operation: str, parameters: dict[str, Any]
) -> PermissionCheck:
    where = "us-east-1" if service in ("pricing", "route53") else region
    try:
        aws.once(where, service, operation, **parameters)
    except AwsError as error:
        code = code_of(error)
        if code in ABSENT or code.endswith((".NotFound", ".Malformed")):
            return PermissionCheck(action=action, region=where, outcome="allowed")
        denied = code in PERMISSIONS or code in CREDENTIALS or not isinstance(error, ClientError)
        return PermissionCheck(
            action=action, region=where, outcome="denied" if denied else "unknown", detail=words(error)
        )
    return PermissionCheck(action=action, region=where, outcome="allowed")
