"""Many redeploys of one service: what each costs the Prefect API, and keeps there, stays the same."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from prefect_dstack import Endpoint
from prefect_dstack.store.records import load_record
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

KEPT = 2
ROUNDS = 6


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the Prefect API on behalf of deployments; heartbeats, logs and events apart."""
    seen: list[str] = []
    send = httpx.Client.send
    asend = httpx.AsyncClient.send

    def note(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url.path}")

    def sync(client: httpx.Client, request: httpx.Request, **options: object) -> httpx.Response:
        note(request)
        return send(client, request, **options)  # type: ignore[arg-type]

    async def asynchronous(
        client: httpx.AsyncClient, request: httpx.Request, **options: object
    ) -> httpx.Response:
        note(request)
        return await asend(client, request, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(httpx.Client, "send", sync)
    monkeypatch.setattr(httpx.AsyncClient, "send", asynchronous)
    return seen


def test_a_redeploy_costs_what_the_one_before_did(
    deploy: Callable[..., Endpoint], name: str, prefect_server: PrefectServer, requests: list[str]
) -> None:
    def rows() -> int:
        flow_runs = {"name": {"any_": [f"deploy {name}"]}}
        counts = [
            prefect_server.ask("/flow_runs/count", flow_runs=flow_runs),
            prefect_server.ask("/task_runs/count", flow_runs=flow_runs),
            prefect_server.ask("/block_documents/count", block_documents={"name": {"like_": name}}),
            prefect_server.ask("/artifacts/count", artifacts={"key": {"like_": name}}),
        ]
        return sum(counts)

    costs, growth, sizes = [], [], []
    for number in range(ROUNDS):
        asked, known = len(requests), rows()
        deploy(env={"GREETING": str(number)}, retain=KEPT)
        costs.append(len([it for it in requests[asked:] if "/logs" not in it and "/events" not in it]))
        growth.append(rows() - known)
        sizes.append(len(load_record(name).model_dump_json()))
    # The first two make what the others find, and the record fills up to what is retained.
    assert max(costs[2:]) - min(costs[2:]) <= 3, costs
    assert len(set(growth[2:])) == 1, growth
    assert max(sizes[KEPT + 1 :]) - min(sizes[KEPT + 1 :]) < 100, sizes
    assert costs[-1] < 100, costs
