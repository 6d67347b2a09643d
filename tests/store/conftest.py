from __future__ import annotations

from tests.testbed.ec2.fixtures import _aws, aws

__all__ = ["_aws", "aws"]
