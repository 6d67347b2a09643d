"""The model behind a service, as something with an address of its own: `s3://bucket/key`, or a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["asset_key", "local_path"]

FILE = "file://"
MAX_KEY = 512
_RESTRICTED = re.compile(r"[^\w./:@+,=~*()!$;-]")


def local_path(asset: str, directory: Path) -> Path | None:
    """Return the file or directory that a model asset names.

    Args:
        asset: The asset as it was written.
        directory: What a relative path starts from.

    Returns:
        An absolute path; None if the asset is somewhere else.
    """
    if "://" in asset and not asset.startswith(FILE):
        return None
    # Not resolved: a link to the newest model is the name of the model, whatever it leads to today.
    return Path(os.path.normpath(directory / asset.removeprefix(FILE)))


def asset_key(asset: str, directory: Path) -> str:
    """Return the key by which Prefect knows a model asset.

    Args:
        asset: The asset as it was written.
        directory: What a relative path starts from.

    Returns:
        A URI, such as `s3://bucket/key` or `file:///models/shop.onnx`, with `_` for characters that keys may
        not have.
    """
    path = local_path(asset, directory)
    return asset if path is None else _RESTRICTED.sub("_", f"{FILE}{path}")[:MAX_KEY]
