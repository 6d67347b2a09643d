"""Fixtures for tests that need AWS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.ec2.account import Account
from tests.testbed.requirements import testbed_reason

REGIONS = ("us-east-1", "eu-west-1")


@pytest.fixture(scope="session")
def _aws() -> Iterator[Account]:
    with Account() as account:
        yield account


@pytest.fixture
def aws(_aws: Account) -> Account:
    """An empty AWS account, without hosts behind its instances; us-east-1 and eu-west-1 are usable."""
    _aws.reset(*REGIONS)
    return _aws


@pytest.fixture(scope="session")
def _aws_with_hosts() -> Iterator[Account]:
    reason = testbed_reason()
    if reason:
        pytest.skip(f"no testbed: {reason}")
    with Account(hosts=True) as account:
        yield account


@pytest.fixture
def aws_with_hosts(_aws_with_hosts: Account) -> Account:
    """An empty AWS account, with a real host behind each instance."""
    _aws_with_hosts.reset(*REGIONS)
    return _aws_with_hosts
