"""Revisions as Prefect assets, which depend on the assets of their models."""

from __future__ import annotations

from pathlib import Path

from prefect.assets import Asset, AssetProperties, materialize
from prefect.cache_policies import NO_CACHE

from prefect_dstack.domain.model_asset import asset_key
from prefect_dstack.domain.record import Endpoint, Revision

__all__ = ["materialize_revision", "service_key"]

TOOL = "prefect-dstack"


def service_key(service: str) -> str:
    """Return the key of the asset that a service is.

    Args:
        service: The name of the service.
    """
    return f"dstack://services/{service}"


def materialize_revision(revision: Revision, endpoint: Endpoint) -> None:
    """Report to Prefect that a service, as an asset, was materialized; without a model, do nothing.

    A revision without a model counts too if its deployer has written something on it.

    Args:
        revision: What serves.
        endpoint: Where it answers.
    """
    model = revision.configuration.get("model_asset")
    if model is None and not revision.annotations:
        return
    asset = Asset(
        key=service_key(endpoint.service),
        properties=AssetProperties(name=endpoint.service, url=endpoint.url),
    )
    upstream: list[Asset | str] = [] if model is None else [asset_key(model, Path(revision.directory))]

    @materialize(
        asset,
        by=TOOL,
        asset_deps=upstream,
        name="materialize-revision",
        task_run_name=f"materialize {endpoint.service}@{revision.number}",
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def record_materialization() -> None:
        """Emit the events of a service as an asset that depends on its model."""
        asset.add_metadata(
            {
                "service": endpoint.service,
                "revision": revision.number,
                "url": endpoint.url,
                "model_asset": upstream[0] if upstream else None,
                "model_version": revision.model_version or None,
                "annotations": revision.annotations,
                "created_by": revision.created_by,
            }
        )

    record_materialization()
