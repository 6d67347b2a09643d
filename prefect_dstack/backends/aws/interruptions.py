"""Spot instances that EC2 is about to take back.

EC2 marks the request of a spot instance two minutes before it terminates it:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instances-request-status-lifecycle.html
"""

from __future__ import annotations

from prefect_dstack.backends.aws.clients import Aws

__all__ = ["marked_instances"]

MARKED = "marked-for-termination"


def marked_instances(aws: Aws, region: str) -> list[str]:
    """Return the instances of a region that EC2 is about to take back, ours or not.

    Args:
        aws: The account.
        region: Where.

    Raises:
        ProvisioningError: With AWS's words.
    """
    marked = {"Name": "status-code", "Values": [MARKED]}
    requests = aws.pages(
        region, "ec2", "describe_spot_instance_requests", "SpotInstanceRequests", Filters=[marked]
    )
    return [request["InstanceId"] for request in requests if request.get("InstanceId")]
