"""The terminal sessions of the docs, recorded from real ones."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.prefect_ui import picture_directory
from tests.cli.recording import animated, recorded
from tests.cli.terminal import Terminal
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.test_documented import DOCS, ROOT, blocks
from tests.home import Home

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.usefixtures("prefect_server"),
]

# Narrower than the text of GitHub's pages, where they stay as sharp as it.
COLUMNS = 88


def save(picture: str, directory: Path, name: str) -> None:
    """Write a picture that is whole and asks no other host for anything."""
    ET.fromstring(picture)
    assert not re.findall(r"url\([\"']?http|href=[\"']http", picture)
    (picture_directory(directory) / f"{name}.svg").write_text(picture)


def test_a_service_under_load(
    terminal: Callable[..., Terminal], cli: CommandLine, home: Home, tmp_path: Path
) -> None:
    page = DOCS / "tutorial.md"
    directory = tmp_path / "answer"
    directory.mkdir()
    (directory / "app.py").write_text(blocks(page, "python")[0])
    file = directory / "answer.dstack.yml"
    file.write_text(blocks(page, "yaml")[0])
    cli.ok("apply", file, "-y")
    with Asking(f"http://127.0.0.1:{home.port}"):
        listed = terminal("ps", columns=COLUMNS)
        code = listed.end(400)
        live = terminal("top", "--interval", "1", columns=COLUMNS)
        live.expect(re.compile(r"2/2 +[1-9]"), 300)
        shown_live = live.raw
        live.press_ctrl_c()
        live.end()
    cli.ok("stop", "answer", "-y")
    cli.ok("delete", "answer", "-y")

    assert code == 0, listed.text
    sessions = [("prefect-dstack ps", listed.raw), ("prefect-dstack top", shown_live)]
    picture = recorded(sessions, "prefect-dstack", COLUMNS)
    for text in (">serving<", "REQ/S"):
        assert text in picture
    save(picture, tmp_path, "top")


def test_the_demo(home: Home, cli: CommandLine, tmp_path: Path) -> None:
    # Where readers run it: it names its own program relative to that.
    demo = Terminal(ROOT, "examples/demo.py", columns=COLUMNS, program=sys.executable)
    code = demo.end(900)
    cli.ok("stop", "hello", "-y")
    cli.ok("delete", "hello", "-y")

    assert code == 0, demo.text
    picture = animated(recorded([("make demo", demo.raw)], "make demo", COLUMNS), demo.parts, COLUMNS)
    assert re.search(r">[0-9]+&#160;requests,&#160;0&#160;failed<", picture)
    save(picture, tmp_path, "demo")
