"""EC2 instances: asked for, found by their stamp, described and given back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefect_dstack.backends.aws import tags as tagging
from prefect_dstack.backends.aws.clients import Aws, pause_before
from prefect_dstack.backends.aws.errors import AwsError, code_of, is_lost, translate
from prefect_dstack.backends.aws.images import MachineImage
from prefect_dstack.backends.aws.network import network_name
from prefect_dstack.backends.aws.settings import AwsSettings
from prefect_dstack.backends.aws.tags import filters, tagged
from prefect_dstack.backends.aws.user_data import LOGIN
from prefect_dstack.backends.base import Instance, Offer, Report
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import ProvisioningError

__all__ = ["LIVE", "describe", "find", "launch", "launch_parameters", "terminate", "to_instance"]

Ec2Instance = Mapping[str, Any]
"""As DescribeInstances gives it."""

LIVE = ("pending", "running", "stopping", "stopped")

# How often a request is repeated whose answer was lost; each time EC2 is first asked what came of it.
LOST_ANSWERS = 4

# So long EC2 may not yet show what it has made.
CONSISTENCY = 30.0


def launch_parameters(
    settings: AwsSettings,
    offer: Offer,
    *,
    image: MachineImage,
    subnet: str,
    groups: Sequence[str],
    user_data: str,
    tags: Mapping[str, str],
    token: str,
    public: bool = True,
    instance_profile: str | None = None,
    max_price: float | None = None,
) -> dict[str, Any]:
    """Return a request for one machine.

    Args:
        settings: Of the account.
        offer: Which kind.
        image: What it boots from.
        subnet: Where.
        groups: Its security groups.
        user_data: What it is told on its first boot.
        tags: Put on the machine, its disk and its network interface in this same call.
        token: By which EC2 recognises the request.
        public: Whether it gets a public address.
        instance_profile: The name or ARN of an IAM instance profile for what runs on it.
        max_price: US dollars an hour, the most to pay for a spot machine; None: the on-demand price.

    Returns:
        The parameters of RunInstances.
    """
    kinds = ["instance", "volume", "network-interface"]
    parameters: dict[str, Any] = {
        "ClientToken": token,
        "ImageId": image.id,
        "InstanceType": offer.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "UserData": user_data,
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            # A container is one hop further away than its machine.
            "HttpPutResponseHopLimit": 1 if instance_profile is None else 2,
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": image.root_device,
                "Ebs": {
                    "DeleteOnTermination": True,
                    "Encrypted": True,
                    "VolumeSize": max(round(offer.disk_gb or settings.disk_gb), image.root_gb),
                    "VolumeType": "gp3",
                },
            }
        ],
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": subnet,
                "Groups": list(groups),
                "AssociatePublicIpAddress": public,
                "DeleteOnTermination": True,
            }
        ],
    }
    if instance_profile is not None:
        key = "Arn" if instance_profile.startswith("arn:") else "Name"
        parameters["IamInstanceProfile"] = {key: instance_profile}
    if offer.spot:
        kinds.append("spot-instances-request")
        spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        if max_price is not None:
            spot["MaxPrice"] = f"{max_price:.4f}"
        parameters["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": spot}
    else:
        # A machine that shuts itself down would keep its disk, and its price.
        parameters["InstanceInitiatedShutdownBehavior"] = "terminate"
    parameters["TagSpecifications"] = tagging.specifications(tags, *kinds)
    return parameters


def launch(
    aws: Aws, region: str, parameters: Mapping[str, Any], host_key: str, report: Report
) -> Ec2Instance:
    """Request a machine once.

    If the answer is lost, EC2 is asked for what carries the request's host key before it is repeated.

    Args:
        aws: The account.
        region: Where.
        parameters: From `launch_parameters`.
        host_key: The public host key among their tags, which no other request has.
        report: Told of lost answers.

    Returns:
        The machine.

    Raises:
        ClientError: What EC2 answers, capacity errors among them.
        ProvisioningError: If no answer is to be had.
    """
    lost: Exception | None = None
    for attempt in range(1, LOST_ANSWERS + 1):
        try:
            answer = aws.once(region, "ec2", "run_instances", report, **parameters)
            made: Ec2Instance = answer["Instances"][0]
        except AwsError as error:
            if not is_lost(error):
                raise
            lost = error
        else:
            return made
        report(f"aws: {region}: RunInstances: no answer ({code_of(lost)}), looking for what came of it")
        aws.pause(pause_before(attempt))
        found = find(aws, region, tagged(tagging.HOST_KEY, host_key))
        if found:
            report(f"aws: {region}: {found[0]['InstanceId']} was made although its answer was lost")
            return found[0]
    raise translate(lost or ProvisioningError("no attempt"), f"RunInstances in {region}")


def find(aws: Aws, region: str, *by: dict[str, Any], states: Sequence[str] = LIVE) -> list[Ec2Instance]:
    """List machines of ours, the oldest first.

    Args:
        aws: The account.
        region: Where.
        by: More filters.
        states: In which states; by default those that live.

    Returns:
        The machines.

    Raises:
        ProvisioningError: With AWS's words.
    """
    ours = [tagged(tagging.ROLE, "replica", "gateway"), *filters(instance_state_name=states)]
    return sorted(_pages(aws, region, [*ours, *by]), key=lambda instance: instance["LaunchTime"])


def by_stamp(stamp: Stamp) -> list[dict[str, Any]]:
    """Return the filters for a replica's machine, whichever flow run made it."""
    labels = stamp.labels(":")
    return [tagged(key, value) for key, value in labels.items() if not key.endswith(":flow-run")]


def describe(aws: Aws, region: str, identifier: str) -> Ec2Instance | None:
    """Inspect a machine.

    Args:
        aws: The account.
        region: Where.
        identifier: For example `i-0abc...`.

    Returns:
        The machine; None if EC2 does not know it, or no more.

    Raises:
        ProvisioningError: With AWS's words.
    """
    try:
        answer = aws.call(region, "ec2", "describe_instances", InstanceIds=[identifier])
    except ProvisioningError as error:
        if error.__cause__ is not None and code_of(error.__cause__).startswith("InvalidInstanceID"):
            return None
        raise
    instances = [i for reservation in answer["Reservations"] for i in reservation["Instances"]]
    return instances[0] if instances else None


def terminate(
    aws: Aws,
    region: str,
    identifier: str,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Release a machine, and verify that it is gone.

    Args:
        aws: The account.
        region: Where.
        identifier: For example `i-0abc...`.
        timeout: Seconds within which EC2 must confirm it; it asks again meanwhile.
        clock: Tells the seconds.

    Raises:
        ProvisioningError: If EC2 does not confirm it.
    """
    deadline = clock() + timeout
    attempt = 0
    while True:
        instance = describe(aws, region, identifier)
        state = "terminated" if instance is None else instance["State"]["Name"]
        if state == "terminated":
            return
        # Shutting down cannot be undone: from then on there is only waiting, and nothing is charged.
        if state != "shutting-down":
            try:
                aws.call(region, "ec2", "terminate_instances", InstanceIds=[identifier])
            except ProvisioningError as error:
                if error.__cause__ is None or not code_of(error.__cause__).startswith("InvalidInstanceID"):
                    raise
        if clock() >= deadline and attempt:
            raise ProvisioningError(
                f"aws: {region}: {identifier} is still {state}, {timeout:.0f} s after its termination was "
                "asked for"
            )
        attempt += 1
        aws.pause(min(pause_before(attempt), 5.0))


def to_instance(aws: Aws, region: str, instance: Ec2Instance) -> Instance:
    """Describe one of EC2's machines as ours.

    Args:
        aws: The account.
        region: Where it is.
        instance: As EC2 gives it.

    Returns:
        The machine; its `details` hold the public host key that is pinned.
    """
    tags = tagging.from_list(instance.get("Tags"))
    stamp = Stamp.from_labels(tags, ":")
    private = instance.get("PrivateIpAddress")
    reachable = instance.get("PublicIpAddress") if aws.settings.public_ips else private
    gpus = tags.get(tagging.GPUS, "")
    price = tags.get(tagging.PRICE, "")
    return Instance(
        backend="aws",
        id=instance["InstanceId"],
        name=stamp.name if stamp else tags.get(tagging.GATEWAY, instance["InstanceId"]),
        region=region,
        instance_type=instance["InstanceType"],
        address=reachable or "",
        private_address=private,
        network=network_name(instance["VpcId"]) if instance.get("VpcId") else None,
        exclusive=True,
        price=float(price) if price else None,
        spot=instance.get("InstanceLifecycle") == "spot",
        gpu_devices=tuple(map(str, range(int(gpus)))) if gpus.isdecimal() else (),
        details={
            "state": instance["State"]["Name"],
            "zone": instance.get("Placement", {}).get("AvailabilityZone", ""),
            "user": LOGIN,
            "host_key": tags.get(tagging.HOST_KEY, ""),
            "role": tags.get(tagging.ROLE, ""),
            "ports": tags.get(tagging.PORTS, ""),
            "domain": tags.get(tagging.DOMAIN, ""),
            "stamp": stamp.model_dump() if stamp else None,
        },
    )


def _pages(aws: Aws, region: str, by: Iterable[dict[str, Any]]) -> Iterable[Ec2Instance]:
    for reservation in aws.pages(region, "ec2", "describe_instances", "Reservations", Filters=list(by)):
        yield from reservation["Instances"]
