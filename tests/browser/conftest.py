"""A browser for the tests of the UI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.prefect_ui import PrefectUI, picture_directory, prefect_ui
from tests.prefect_server import PrefectServer


@pytest.fixture
def ui(prefect_server: PrefectServer, tmp_path: Path) -> Iterator[PrefectUI]:
    """A browser before the UI of the Prefect server."""
    with prefect_ui(prefect_server, picture_directory(tmp_path)) as ui:
        yield ui
