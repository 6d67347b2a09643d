"""The AWS account that the Prefect API knows, as a backend.

boto3 takes its time to import: only who has an account pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dstack.backends.base import Backend
from prefect_dstack.infrastructure.sources import BackendContext

if TYPE_CHECKING:
    from prefect_dstack.aws_blocks import DstackAwsBackend

__all__ = ["aws"]

SLUG = "dstack-aws-backend"
BLOCK = "default"

# The block that the account was made of last: a backend keeps its clients, and renews their sessions itself.
_account: tuple[DstackAwsBackend, Backend] | None = None


def aws(context: BackendContext) -> Backend | None:
    """Return the AWS account of the block `default`.

    Args:
        context: What the backend may use.

    Returns:
        The backend; None if there is no such block.
    """
    if BLOCK not in context.sources.block_data(SLUG):
        return None
    from prefect_dstack.aws_blocks import DstackAwsBackend

    block = context.sources.load_block(DstackAwsBackend, BLOCK)
    if block is None:
        return None
    global _account
    if _account is None or _account[0] != block:
        _account = (block, block.backend(context.home))
    return _account[1]
