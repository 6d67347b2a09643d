"""The public surface is what it says it is."""

from __future__ import annotations

import subprocess
import sys

from prefect_dstack import configurations


def test_every_exported_name_exists_once() -> None:
    assert len(set(configurations.__all__)) == len(configurations.__all__)
    assert [name for name in configurations.__all__ if not hasattr(configurations, name)] == []


def test_importing_it_does_not_import_prefect() -> None:
    code = "import sys, prefect_dstack.configurations; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
