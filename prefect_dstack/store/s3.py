"""Which version of an object S3 has now."""

from __future__ import annotations

import contextlib
import hashlib
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from prefect_dstack.errors import NotFoundError, PrefectDstackError, UserError
from prefect_dstack.store import documents
from prefect_dstack.store.aws import BLOCK, SLUG

__all__ = ["object_version"]

SCHEME = "s3://"


def object_version(uri: str) -> str:
    """Return what tells the present content of an object from any other.

    It is asked with the credentials of the block `dstack-aws-backend/default`, if there is one, else with
    those that boto3 finds.

    Args:
        uri: `s3://bucket/key`; one that ends with a slash stands for all objects whose keys begin with it.

    Returns:
        The object's ETag, or a digest of those of all objects.

    Raises:
        NotFoundError: If there is no such object.
        UserError: If S3 refuses.
        PrefectDstackError: If S3 cannot be asked.
    """
    # boto3 takes its time to import: only who has a model there pays for it.
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = urlsplit(uri).netloc, uri.removeprefix(SCHEME).partition("/")[2]
    try:
        with contextlib.closing(_client()) as client:
            if key and not key.endswith("/"):
                return str(client.head_object(Bucket=bucket, Key=key)["ETag"]).strip('"')
            return _version_of_all(client, bucket, key, uri)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{uri}: there is no such object; correct model_asset") from error
        if status in (HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST):
            raise UserError(f"{uri}: S3 refuses: {error}; it needs s3:GetObject and s3:ListBucket") from error
        raise PrefectDstackError(f"{uri}: S3 fails: {error}") from error
    except BotoCoreError as error:
        raise UserError(f"{uri}: S3 cannot be asked: {error}") from error


def _version_of_all(client: Any, bucket: str, prefix: str, uri: str) -> str:
    total, found = hashlib.sha256(), False
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            found = True
            total.update(f"{item['Key']}\0{item['ETag']}\0".encode())
    if not found:
        raise NotFoundError(f"{uri}: there is no object below it; correct model_asset")
    return total.hexdigest()


def _client() -> Any:
    import boto3

    if BLOCK not in documents.data_of_slug(SLUG):
        return boto3.client("s3")
    from prefect_dstack.aws_blocks import DstackAwsBackend

    block = documents.load(DstackAwsBackend, BLOCK)
    return boto3.client("s3") if block is None else block.credentials.get_client("s3")
