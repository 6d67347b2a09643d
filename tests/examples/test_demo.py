"""`make demo` shows what it promises: a service that is replaced under load, and no request that fails."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.command_line import CommandLine
from tests.examples.test_examples import EXAMPLES

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def test_no_request_fails_while_the_service_is_replaced(cli: CommandLine) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"], capture_output=True, text=True, timeout=120, check=False
    )
    cli.ok("stop", "hello", "-y")
    cli.ok("delete", "hello", "-y")

    assert done.returncode == 0, done
    counts = re.search(
        r"^(\d+) requests, 0 failed\n  (\d+) answered by revision 1\n  (\d+) answered by revision 2$",
        done.stdout,
        re.MULTILINE,
    )
    assert counts, done.stdout
    total, before, after = map(int, counts.groups())
    assert total == before + after
    assert min(before, after) > 0
    assert re.search(r"^hello +2 +serving +1/1 +http", done.stdout, re.MULTILINE)
