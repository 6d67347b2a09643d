"""Which version of its model a service would start with now."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from prefect_dstack.bundles.digests import RememberedDigests
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.model_asset import asset_key, local_path
from prefect_dstack.errors import NotFoundError, UserError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.store.s3 import SCHEME, object_version

__all__ = ["model_version"]


def model_version(configuration: ServiceConfiguration, infrastructure: Infrastructure) -> str:
    """Return what tells the present content of a service's model from any other.

    Args:
        configuration: The service.
        infrastructure: Where digests of files are remembered, so that a large model is read once.

    Returns:
        The digest of a file or directory, or the ETag of an object in S3; empty if the service names no
        model, or one in a place that cannot be asked.

    Raises:
        NotFoundError: If there is no such file or object.
        UserError: If it cannot be read.
    """
    asset = configuration.model_asset
    if asset is None:
        return ""
    path = local_path(asset, configuration.directory)
    if path is not None:
        return _content(path, infrastructure)
    return object_version(asset) if asset.startswith(SCHEME) else ""


def _content(path: Path, infrastructure: Infrastructure) -> str:
    name = hashlib.sha256(asset_key(str(path), path).encode()).hexdigest()
    known = RememberedDigests(infrastructure.bundles.cache / f"model-{name[:16]}.json")
    try:
        real = path.resolve(strict=True)
        if not real.is_dir():
            digest = known.digest(str(real))[0]
        else:
            total = hashlib.sha256()
            for file in sorted(_files(real)):
                content = known.digest(str(file.resolve(strict=True)))[0]
                total.update(f"{file.relative_to(real)}\0{content}\0".encode(errors="surrogateescape"))
            digest = total.hexdigest()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: there is no such model; correct model_asset") from error
    except OSError as error:
        raise UserError(f"{path}: the model cannot be read: {error.strerror}") from error
    known.save()
    return digest


def _files(directory: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(directory):
        yield from (Path(parent) / name for name in names)
