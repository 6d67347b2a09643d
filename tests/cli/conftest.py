"""Files for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.terminal import Terminal
from tests.flows.conftest import hello
from tests.home import Home


@pytest.fixture
def write(tmp_path: Path, name: str) -> Callable[..., Path]:
    """Writes the file of a service that says hello."""

    def write(**keys: object) -> Path:
        file = tmp_path / "serve.dstack.yml"
        file.write_text(yaml.safe_dump(hello(name, **keys)))
        return file

    return write


@pytest.fixture
def terminal(home: Home, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts commands in a terminal, in the test's own home."""
    started: list[Terminal] = []

    def terminal(*arguments: str | Path, **options: Any) -> Terminal:
        started.append(Terminal(tmp_path, *arguments, **options))
        return started[-1]

    yield terminal
    for one in started:
        one.close()
