"""Machines and gateways from Amazon Web Services."""

from prefect_dstack.backends.aws.backend import AwsBackend
from prefect_dstack.backends.aws.clients import SessionFactory
from prefect_dstack.backends.aws.dns import Record
from prefect_dstack.backends.aws.gateway import AwsGateways
from prefect_dstack.backends.aws.permissions import PermissionCheck, check_permissions, least_policy
from prefect_dstack.backends.aws.settings import AwsSettings

__all__ = [
    "AwsBackend",
    "AwsGateways",
    "AwsSettings",
    "PermissionCheck",
    "Record",
    "SessionFactory",
    "check_permissions",
    "least_policy",
]
