"""The documentation builds as a site that needs no other host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)

    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        assert tmp_path / name / "index.html" in pages
    loaded = {
        (path.name, url)
        for path, text in pages.items()
        for url in re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)", text)
    }
    assert not loaded
    backend = pages[tmp_path / "how-to" / "write-a-backend" / "index.html"]
    assert 'id="prefect_dstack.backends.base.Backend.provision"' in backend
    assert (tmp_path / "flows" / "train_and_deploy.py").is_file()
