"""What `SECURITY.md` promises is tested: every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())


def test_names_tests() -> None:
    assert len(NAMED) >= 25


@pytest.mark.parametrize(("path", "test"), NAMED, ids=[test for _, test in NAMED])
def test_what_it_names_is_there(path: str, test: str) -> None:
    assert re.search(rf"^\s*def {test}\(", (ROOT / path).read_text(), re.MULTILINE)
