"""What the README and the security policy promise is tested: the tests that they name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PROMISES = re.findall(r"^- \*\*([^*]+)\*\*", (ROOT / "README.md").read_text(), re.MULTILINE)


def named_in(document: str) -> list[tuple[str, str]]:
    return NAMED.findall((ROOT / document).read_text())


def test_security_names_tests() -> None:
    assert len(named_in("SECURITY.md")) >= 25


@pytest.mark.parametrize(
    ("path", "test"), sorted({*named_in("SECURITY.md"), *named_in("CONTRIBUTING.md")}), ids=str
)
def test_what_a_document_names_is_there(path: str, test: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_of_the_readme_names_its_tests() -> None:
    rows = dict(
        re.findall(r"^\| ([^|`]+) \| (`tests/.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    )

    assert len(PROMISES) > 3
    assert list(rows) == PROMISES
    assert all(NAMED.search(tests) for tests in rows.values())
