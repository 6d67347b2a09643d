"""The Prefect block of an AWS account, apart from the others because boto3 takes its time to import."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import boto3
from prefect.blocks.core import Block
from prefect_aws import AwsCredentials
from pydantic import Field, HttpUrl, SecretStr

from prefect_dstack.backends.aws import AwsBackend, AwsSettings
from prefect_dstack.blocks import DOCUMENTATION, logo

__all__ = ["DstackAwsBackend"]


class DstackAwsBackend(Block):
    """An AWS account in which machines for replicas and gateways may be created.

    The block named `default` is the one that deployments use.

    Example:
        ```python
        from prefect_aws import AwsCredentials
        from prefect_dstack.aws_blocks import DstackAwsBackend

        credentials = AwsCredentials.load("my-account")
        DstackAwsBackend(credentials=credentials, settings={"regions": ["eu-west-1"]}).save("default")

        account = DstackAwsBackend.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str] = "dstack AWS Backend"
    _block_type_slug: ClassVar[str] = "dstack-aws-backend"
    _logo_url: ClassVar[HttpUrl] = logo("aws")
    _documentation_url: ClassVar[HttpUrl] = DOCUMENTATION

    credentials: AwsCredentials = Field(description="The credentials of the account, a block of prefect-aws.")
    settings: AwsSettings = Field(description="Where in the account machines are created, and how.")
    ssh_key: SecretStr | None = Field(
        default=None,
        description="The text of the private key with which all who deploy log in to machines. None: a key "
        "that is made on first use and stays on that machine, so that only that one can deploy.",
    )

    def backend(self, home: Path) -> AwsBackend:
        """Create the backend.

        Args:
            home: The home directory of prefect-dstack, for the key and the cache.

        Returns:
            A backend that asks the credentials for a new session now and then.
        """
        credentials = self.credentials

        def session(region: str) -> boto3.Session:
            return credentials.model_copy(update={"region_name": region}).get_boto3_session()

        return AwsBackend(self.settings, session, ssh_key=self.ssh_key, home=home)
