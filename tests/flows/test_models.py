"""The models of several services at one address of their gateway, as their users deploy and ask them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_dstack import Endpoint, create_token, deploy_service, stop_service
from prefect_dstack.errors import ConflictError
from prefect_dstack.services.gateway_overview import gateway_overview
from prefect_dstack.services.inspection import inspect_service
from prefect_dstack.store.records import find_record
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

MODEL = Path(__file__).parents[2] / "examples" / "teams" / "model.py"
LONG = 'a long prompt, with "quotes" and\nlines; ' * 8000

Deploy = Callable[..., Endpoint]


@pytest.fixture
def deploy(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[Deploy]:
    """Deploys services with models by name, and stops them at the end."""
    deployed: list[str] = []

    def deploy(suffix: str, model: str, **keys: Any) -> Endpoint:
        service = f"{name}-{suffix}"
        deployed.append(service)
        return deploy_service(
            {
                "type": "service",
                "name": service,
                "port": 8000,
                "commands": [f"exec python3 '{MODEL}'"],
                "model": model,
                "env": {"MODEL": model, **keys.pop("env", {})},
                "probes": [{"type": "http", "url": "/v1/models", "interval": "1s"}],
                **keys,
            }
        )

    yield deploy
    for service in dict.fromkeys(deployed):
        record = find_record(service)
        if record is not None and record.active is not None:
            stop_service(service)


def ask(url: str, model: str, content: str = "Hi", token: str | None = None) -> httpx.Response:
    """Ask as OpenAI's client does: what is said comes before the model."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = {"messages": [{"role": "user", "content": content}], "model": model}
    return httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=20)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def listed(url: str, token: str | None = None) -> list[str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return [it["id"] for it in httpx.get(f"{url}/models", headers=headers).json()["data"]]


def test_one_address_has_all_models_of_the_gateway(deploy: Deploy, home: Home, name: str) -> None:
    first = deploy("a", "org/small")
    second = deploy("b", "org/large", auth=True, path_prefix="/large")
    token = create_token(f"{name}-b").value.get_secret_value()
    url = first.gateway_openai_base_url
    assert url == f"http://127.0.0.1:{home.port + 1000}/v1"
    assert second.gateway_openai_base_url == url
    assert inspect_service(f"{name}-a")["endpoint"]["gateway_openai_base_url"] == url
    assert [it.openai_base_url for it in gateway_overview() if it.name == "local"] == [url]

    assert listed(url) == ["org/small"]
    assert listed(url, token) == ["org/small", "org/large"]
    assert said(ask(url, "org/small")) == "org/small was asked: Hi"
    assert said(ask(url, "org/large", LONG, token)) == f"org/large was asked: {LONG}"
    assert ask(url, "org/large").status_code == 401
    unknown = ask(url, "org/other", token=token)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")

    with pytest.raises(ConflictError, match=f"belongs to service '{name}-a'"):
        deploy("c", "org/small")
    assert find_record(f"{name}-c") is None

    stop_service(f"{name}-a")
    assert listed(url, token) == ["org/large"]


def test_a_redeploy_loses_no_request_there(deploy: Deploy) -> None:
    url = deploy("a", "small").gateway_openai_base_url
    assert url is not None
    outcomes: Counter[str] = Counter()
    done = threading.Event()

    def keep_asking(content: str) -> None:
        while not done.wait(0.05):
            try:
                answer = ask(url, "small", content)
                outcomes["answered" if answer.status_code == 200 else answer.text] += 1
            except httpx.HTTPError as error:
                outcomes[repr(error)] += 1

    threads = [threading.Thread(target=keep_asking, args=(content,)) for content in ("Hi", LONG)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: outcomes["answered"] > 4)
        for revision in (2, 3):
            assert deploy("a", "small", env={"REVISION": str(revision)}).revision == revision
            before = outcomes["answered"]
            wait_until(lambda before=before: outcomes["answered"] > before + 4)  # type: ignore[misc]
        # Another service with a model has the gateway read its configuration anew.
        deploy("b", "large")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) == {"answered"}
