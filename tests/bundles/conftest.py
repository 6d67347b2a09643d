from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dstack.bundles import BundleStore

_watched: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watched is not None and event in ("open", "os.scandir", "os.listdir"):
        _watched.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, Path)) else "")


@pytest.fixture(scope="session")
def audit() -> None:
    sys.addaudithook(_hook)  # stays for good


@pytest.fixture
def touched(audit: None) -> Iterator[list[str]]:
    """The paths that Python opens and the directories that it lists from now on."""
    global _watched
    _watched = []
    yield _watched
    _watched = None


@pytest.fixture
def app(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    directory.mkdir()
    return directory


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "home/bundles")
