"""What AWS's refusals mean for us, in AWS's own words."""

from __future__ import annotations

import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from prefect_dstack.errors import CapacityError, PrefectDstackError, ProvisioningError

__all__ = [
    "AwsError",
    "code_of",
    "is_capacity",
    "is_lost",
    "is_quota",
    "is_throttling",
    "is_transient",
    "translate",
]

# An answer that is no AWS answer, as a proxy gives it, is not a BotoCoreError.
AwsError = (BotoCoreError, ClientError, ResponseParserError)
"""Everything that a call to AWS raises."""

THROTTLING = frozenset(
    {
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
SERVER_SIDE = frozenset({"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"})
CAPACITY = frozenset(
    {
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",
    }
)
QUOTA = frozenset({"InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"})
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
CREDENTIALS = EXPIRED | {
    "AuthFailure",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
PERMISSIONS = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})

# AWS appends a kilobyte that only `sts decode-authorization-message` can read.
_ENCODED = re.compile(r"\s*Encoded authorization failure message:.*", re.DOTALL)


def code_of(error: BaseException) -> str:
    """Return AWS's code for an error, such as `InsufficientInstanceCapacity`; else the exception's name."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "Unknown"))
    return type(error).__name__


def is_throttling(error: BaseException) -> bool:
    """Return whether AWS only asks to go slower."""
    return code_of(error) in THROTTLING


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a little later."""
    return is_throttling(error) or is_lost(error)


def is_lost(error: BaseException) -> bool:
    """Return whether the call may have been carried out although no answer came."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in SERVER_SIDE or (
            status >= 500 and not is_throttling(error) and not is_capacity(error)
        )
    return isinstance(
        error,
        (
            ConnectionClosedError,
            ConnectTimeoutError,
            EndpointConnectionError,
            ReadTimeoutError,
            ResponseParserError,
        ),
    )


def is_capacity(error: BaseException) -> bool:
    """Return whether AWS has none left of what was asked, there and then."""
    return code_of(error) in CAPACITY


def is_quota(error: BaseException) -> bool:
    """Return whether the account may not have more of what was asked, in that region."""
    return code_of(error) in QUOTA


def words(error: BaseException) -> str:
    """Return AWS's own words on one line, without what only AWS can read."""
    if isinstance(error, ClientError):
        message = str(error.response.get("Error", {}).get("Message", "")) or "no message"
        return " ".join(f"{code_of(error)}: {_ENCODED.sub('', message)}".split())
    return " ".join(str(error).split()) or type(error).__name__


def translate(error: Exception, doing: str) -> PrefectDstackError:
    """Turn an error of botocore into one of ours.

    Args:
        error: What botocore raised.
        doing: What was attempted and where, for example `RunInstances in eu-west-1`.

    Returns:
        The error to raise, with AWS's own words and, where there is one, the remedy.
    """
    if isinstance(error, PrefectDstackError):
        return error
    message = f"aws: {doing}: {words(error)}"
    if is_capacity(error) or is_quota(error):
        return CapacityError(message)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)) or code_of(error) in CREDENTIALS:
        return ProvisioningError(
            f"{message.rstrip('.')}; check the AWS credentials (and that the account has the region enabled)"
        )
    if code_of(error) in PERMISSIONS:
        return ProvisioningError(
            f"{message.rstrip('.')}; `prefect-dstack doctor --iam-policy` prints the policy that suffices"
        )
    if isinstance(error, AwsError):
        return ProvisioningError(message)
    return ProvisioningError(f"aws: {doing}: {type(error).__name__}: {words(error)}")
