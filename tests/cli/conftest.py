"""Files for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import hello


@pytest.fixture
def write(tmp_path: Path, name: str) -> Callable[..., Path]:
    """Writes the file of a service that says hello."""

    def write(**keys: object) -> Path:
        file = tmp_path / "serve.dstack.yml"
        file.write_text(yaml.safe_dump(hello(name, **keys)))
        return file

    return write
