from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError
from botocore.parsers import ResponseParserError

from prefect_dstack.backends.aws.errors import is_capacity, is_lost, is_quota, is_throttling, translate
from prefect_dstack.errors import CapacityError, ProvisioningError


def client_error(code: str, message: str = "its own words", status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "RunInstances",
    )


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InsufficientInstanceCapacity", 500, "capacity"),
        ("SpotMaxPriceTooLow", 400, "capacity"),
        ("Unsupported", 400, "capacity"),
        ("InsufficientFreeAddressesInSubnet", 400, "capacity"),
        ("VcpuLimitExceeded", 400, "quota"),
        ("MaxSpotInstanceCountExceeded", 400, "quota"),
        ("RequestLimitExceeded", 503, "throttling"),
        ("InternalError", 500, "lost"),
        ("Unavailable", 503, "lost"),
        ("SomethingNew", 502, "lost"),
        ("InvalidParameterValue", 400, None),
        ("UnauthorizedOperation", 403, None),
    ],
)
def test_each_error_is_of_one_kind(code: str, status: int, kind: str | None) -> None:
    error = client_error(code, status=status)
    kinds = {
        "capacity": is_capacity(error),
        "quota": is_quota(error),
        "throttling": is_throttling(error),
        "lost": is_lost(error),
    }
    assert [name for name, is_it in kinds.items() if is_it] == ([kind] if kind else [])


@pytest.mark.parametrize(
    "error",
    [
        ReadTimeoutError(endpoint_url="https://ec2"),
        ConnectTimeoutError(endpoint_url="https://ec2"),
        ResponseParserError("<html>"),
    ],
)
def test_an_answer_that_did_not_come_is_lost(error: Exception) -> None:
    assert is_lost(error)
    assert isinstance(translate(error, "RunInstances in eu-west-1"), ProvisioningError)


def test_the_words_are_awss_on_one_line() -> None:
    error = client_error("InvalidParameterValue", "first\n second\tthird")
    assert str(translate(error, "RunInstances in r")) == (
        "aws: RunInstances in r: InvalidParameterValue: first second third"
    )


def test_capacity_and_quota_are_capacity_errors() -> None:
    assert isinstance(translate(client_error("InsufficientInstanceCapacity"), "x"), CapacityError)
    assert isinstance(translate(client_error("VcpuLimitExceeded"), "x"), CapacityError)


def test_what_only_aws_can_read_is_cut_off_and_the_remedy_named() -> None:
    error = client_error(
        "UnauthorizedOperation",
        "You are not authorized. Encoded authorization failure message: " + "x" * 900,
        403,
    )
    message = str(translate(error, "RunInstances in r"))
    assert "You are not authorized" in message
    assert "xxx" not in message
    assert "doctor" in message


@pytest.mark.parametrize("error", [client_error("AuthFailure", status=401), NoCredentialsError()])
def test_wrong_or_missing_credentials_are_called_that(error: Exception) -> None:
    assert "check the AWS credentials" in str(translate(error, "GetCallerIdentity in r"))
