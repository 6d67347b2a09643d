"""The examples that install what they need from PyPI: a scikit-learn model, and a Gradio demo."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.command_line import PROGRAM, CommandLine
from tests.examples.test_examples import EXAMPLES
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

Type = Callable[[str], str]


@pytest.fixture(scope="module")
def cache() -> str:
    """Where uv keeps what it has downloaded, outside the homes of tests."""
    return subprocess.check_output([PROGRAM.with_name("uv"), "cache", "dir"], text=True).strip()


@pytest.fixture
def type_(home: Home, prefect_server: PrefectServer, tmp_path: Path, cache: str) -> Iterator[Type]:
    """Types commands as a reader does, in a copy of the examples."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    environment = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "UV_CACHE_DIR": cache}

    def type_(script: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    yield type_
    for name in ("iris", "greeter"):
        CommandLine(tmp_path)("stop", name, "-y")


def test_another_model_is_another_revision(type_: Type) -> None:
    sessions = re.findall(
        r"^```console\n(.*?)^```$",
        (EXAMPLES / "sklearn" / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    first, second = ("\n".join(re.findall(r"^\$ (.*)$", it, re.MULTILINE)) for it in sessions)

    shown = type_(first)
    assert re.search(r"^accuracy 0\.9\d$", shown, re.MULTILINE) or "accuracy 1.00" in shown
    assert '"species":"setosa"' in shown
    shown = type_(f"cd examples/sklearn\n{second}")
    assert "iris@2 serves at" in shown
    assert "iris@1 serves at" in shown.split("iris@2 serves at")[1]


def test_a_gradio_demo_answers_through_the_gateway(type_: Type, home: Home) -> None:
    type_("prefect-dstack apply examples/gradio/gradio.dstack.yml -y")

    with httpx.Client(base_url=f"http://127.0.0.1:{home.port}", timeout=60) as client:
        assert "gradio" in client.get("/").text
        event = client.post("/gradio_api/call/greet", json={"data": ["Ada"]}).json()["event_id"]
        stream = client.get(f"/gradio_api/call/greet/{event}").text
    assert stream.count("event: generating") > 1
    assert 'data: ["Hello Ada, this is revision 1."]' in stream
