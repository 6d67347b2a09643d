"""Models have addresses, whichever way they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.assets import Asset

from prefect_dstack.domain.model_asset import asset_key, local_path

DIRECTORY = Path("/srv/my shop")


@pytest.mark.parametrize(
    ("asset", "key", "path"),
    [
        ("s3://models/shop.onnx", "s3://models/shop.onnx", None),
        ("mlflow://shop/3", "mlflow://shop/3", None),
        ("/models/shop.onnx", "file:///models/shop.onnx", "/models/shop.onnx"),
        ("file:///models/shop.onnx", "file:///models/shop.onnx", "/models/shop.onnx"),
        ("../shop.onnx", "file:///srv/shop.onnx", "/srv/shop.onnx"),
        ("./shop.onnx", "file:///srv/my_shop/shop.onnx", "/srv/my shop/shop.onnx"),
        ("x" * 480, f"file:///srv/my_shop/{'x' * 480}"[:512], f"/srv/my shop/{'x' * 480}"),
    ],
)
def test_each_has_a_key_that_prefect_takes(asset: str, key: str, path: str | None) -> None:
    assert asset_key(asset, DIRECTORY) == Asset(key=key).key
    assert local_path(asset, DIRECTORY) == (None if path is None else Path(path))
