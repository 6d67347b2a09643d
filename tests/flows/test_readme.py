"""What the README tells its readers to type is typed, from top to bottom, in a home without anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.command_line import as_in_a_terminal
from tests.flows.test_documented import BIN, ROOT
from tests.home import Home
from tests.polling import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# What installs is run by tests/test_packaging.py, and what develops by whoever runs this.
SECTIONS = ("Try it", "Use it")


def typed() -> list[str]:
    """The commands of the README, in its order."""
    text = (ROOT / "README.md").read_text()
    found = []
    for section in SECTIONS:
        part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
        for session in re.findall(r"^```console\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            found += re.findall(r"^\$ (.*)$", session, re.MULTILINE)
    return found


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a reader has cloned and installed."""
    clone = tmp_path / "clone"
    (clone / ".venv").mkdir(parents=True)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (clone / ".venv" / name).symlink_to(BIN.parent / name)
    for name in ("Makefile", "prefect.yaml", "pyproject.toml", "uv.lock"):
        shutil.copy2(ROOT / name, clone)
    for name in ("examples", "flows"):
        shutil.copytree(ROOT / name, clone / name)
    (clone / ".venv" / ".installed").touch()
    return clone


@pytest.mark.timeout(1200)
def test_the_readme_from_top_to_bottom(clone: Path, home: Home) -> None:
    # With jobs in groups of their own, as in a terminal: else a job in the background ignores Ctrl-C.
    script = "set -m\n" + "\n".join(f"echo '$' {command.split('  #')[0]!r}\n{command}" for command in typed())
    nowhere = ("PREFECT_API_URL", "PREFECT_HOME")
    with (home.path / "output").open("w+") as output:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=clone,
            env={
                **{name: value for name, value in os.environ.items() if name not in nowhere},
                "PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=1100,
            check=False,
            preexec_fn=as_in_a_terminal,
        )
    shown = (home.path / "output").read_text()
    wait_until(lambda: not list(home.processes()), 60, "the worker has ended")

    assert done.returncode == 0, shown
    assert re.search(r"^\d+ requests, 0 failed$", shown, re.MULTILINE), shown
    deployed = shown.split("$ prefect deployment run deploy-service/default -p")[1]
    assert "hello@1: deploying 1 replica" in deployed, shown
    assert re.search(r"^hello +1 +serving +1/1 ", deployed, re.MULTILINE), shown
