"""Fixtures of the tests of the AWS backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.backends.aws import AwsBackend
from tests.testbed.ec2.account import Account
from tests.testbed.ec2.fixtures import _aws, _aws_with_hosts, aws, aws_with_hosts

__all__ = ["_aws", "_aws_with_hosts", "aws", "aws_with_hosts", "backend", "home", "told"]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that all tests share, so that AWS is asked for its catalogue once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def told() -> list[str]:
    """What was reported."""
    return []


@pytest.fixture
def backend(aws: Account, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AwsBackend]:
    """Makes backends on an account without hosts: machines are ready when EC2 says that they run."""

    def make(*regions: str, **settings: Any) -> AwsBackend:
        made = aws.backend(home, *regions, **settings)
        account = made.account
        monkeypatch.setattr(
            account, "ready", lambda region, identifier, report, **_: account.running(region, identifier)
        )
        return made

    return make
