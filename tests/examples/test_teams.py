"""Several models behind one gateway, and tokens that open some of them: as the example's README has it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

from tests.command_line import PROGRAM
from tests.examples.test_examples import EXAMPLES
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

README = EXAMPLES / "teams" / "README.md"


def commands() -> tuple[str, str]:
    """What is typed to set it up, and to take it down."""
    sessions = re.findall(r"^```console\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    up, down = ("\n".join(re.findall(r"^\$ (.*)$", it, re.MULTILINE)) for it in sessions)
    return up, down


def ask(port: int, model: str, token: str) -> str:
    """Ask a model as OpenAI's client does; name servers need not know the host's name."""
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key=token,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(headers={"Host": f"{model}.models.localhost"}),
    ) as client:
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
    return answer.choices[0].message.content or ""


@pytest.mark.timeout(400)
def test_each_token_opens_what_it_is_for(home: Home, prefect_server: PrefectServer, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    up, down = commands()

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    *_, support, research = run(f"{up}\necho $SUPPORT\necho $RESEARCH").split()

    assert ask(home.port, "small", support) == "small was asked: Hi"
    assert ask(home.port, "large", research) == "large was asked: Hi"
    assert ask(home.port, "small", research) == "small was asked: Hi"
    with pytest.raises(openai.AuthenticationError):
        ask(home.port, "large", support)
    run(down)
