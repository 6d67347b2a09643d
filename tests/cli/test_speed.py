"""What a command does not need is not imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CHECK = """
import json, sys
{}
print(json.dumps([name for name in {!r} if name in sys.modules]))
"""
HEAVY = ["docker", "paramiko", "jinja2", "boto3", "cryptography.x509"]


def imported(code: str, names: list[str]) -> list[str]:
    """Which of some modules a program has imported in the end."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(code, names)], capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["ps", "--help"]])
def test_help_and_version_import_neither_prefect_nor_rich(arguments: list[str]) -> None:
    code = f"""
sys.argv = ["prefect-dstack", *{arguments}]
from prefect_dstack.cli.main import main
try:
    main()
except SystemExit:
    pass"""

    assert imported(code, ["prefect", "httpx", "rich", *HEAVY]) == []


@pytest.mark.parametrize("module", ["overview", "runs.overview", "logs", "events", "inspection", "traffic"])
def test_a_look_at_services_imports_no_sdk_and_no_flow(module: str) -> None:
    code = f"import prefect_dstack.services.{module}"

    assert imported(code, [*HEAVY, "prefect_dstack.flows", "prefect_dstack.tasks"]) == []
