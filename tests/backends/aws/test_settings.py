from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dstack.backends.aws import AwsSettings


@pytest.mark.parametrize(
    "values",
    [
        {"regions": []},
        {"regions": ["Frankfurt"]},
        {"regions": ["eu-west-1\n"]},
        {"vpc_id": "vpc-x"},
        {"subnet_ids": ["10.0.0.0/24"]},
        {"security_group_id": "default"},
        {"image": "ubuntu"},
        {"ssh_from": ["everybody"]},
        {"tags": {"aws:x": "y"}},
        {"tags": {"prefect-dstack:service": "y"}},
        {"tags": {"k" * 129: "y"}},
        {"tags": {"k": "v" * 257}},
        {"instance_profile": "a b"},
        {"disk_gb": 1},
        {"nonsense": 1},
        {"regions": ["eu-west-1", "us-east-1"], "vpc_id": "vpc-0123456789abcdef0"},
        {"regions": ["eu-west-1", "us-east-1"], "image": "ami-0123456789abcdef0"},
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AwsSettings(**{"regions": ["eu-west-1"], **values})


@pytest.mark.parametrize(
    "values",
    [
        {"regions": ["eu-west-1", "us-gov-west-1", "ap-southeast-5"]},
        {"regions": ["eu-west-1", "us-east-1"], "image": "/my/images/base"},
        {"vpc_id": "vpc-0123456789abcdef0", "subnet_ids": ["subnet-12345678"]},
        {"instance_profile": "arn:aws:iam::123456789012:instance-profile/path/name"},
        {"instance_profile": "name_of+it"},
        {"tags": {"team": "ml", "empty": ""}},
    ],
)
def test_what_can_be_is_taken(values: dict[str, Any]) -> None:
    AwsSettings(**{"regions": ["eu-west-1"], **values})


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_networks_are_written_without_host_bits(address: Any, length: int) -> None:
    settings = AwsSettings(regions=("eu-west-1",), ssh_from=(f"{address}/{length}",))
    assert AwsSettings(regions=("eu-west-1",), ssh_from=settings.ssh_from) == settings
