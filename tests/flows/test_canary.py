"""A canary gets its share of the traffic, and takes over or goes by what it does with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.domain import canary
from prefect_dstack.errors import DeploymentError
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Deploy = Callable[..., Endpoint]

# A probe that the broken version passes: only the traffic tells.
PROBES = [{"type": "tcp", "interval": "1s"}]
BROKEN = """\
exec python3 -c '
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(500)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'"""


def keys(version: str, **terms: Any) -> dict[str, Any]:
    """A version of the service, with a canary of a third of the traffic."""
    return {
        "env": {"GREETING": version},
        "probes": PROBES,
        "rollout": {"strategy": "canary", "canary": {"weight": "30%", "duration": "3s", **terms}},
    }


def weights(home: Home, name: str) -> dict[str, int]:
    """The weights of the replicas, as the gateway has them."""
    state = json.loads((home.state / "gateways" / "local" / "state.json").read_text())
    return {replica: it["weight"] for replica, it in state["routes"][name]["replicas"].items()}


def paused(server: PrefectServer, name: str) -> list[dict[str, Any]]:
    """The deployments that wait for a person."""
    runs = server.ask(
        "/flow_runs/filter",
        flow_runs={"name": {"any_": [f"deploy {name}"]}, "state": {"type": {"any_": ["PAUSED"]}}},
    )
    assert isinstance(runs, list)
    return runs


def test_a_good_canary_is_promoted_and_a_bad_one_goes(
    deploy: Deploy, home: Home, name: str, monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer
) -> None:
    monkeypatch.setattr(canary, "ENOUGH_REQUESTS", 5)
    terms = {"max_latency_p95_ratio": 1000}
    endpoint = deploy(**keys("one", **terms))
    with Asking(endpoint.url) as asking, ThreadPoolExecutor() as pool:
        done = pool.submit(deploy, **keys("two", **terms))
        wait_until(lambda: len(weights(home, name)) == 2, 60, "the canary gets requests")
        asking.answers.clear()
        shared = weights(home, name)
        wait_until(lambda: sum(asking.answers.values()) >= 60 or done.done(), 60)
        share = asking.answers["2"] / sum(asking.answers.values())
        assert shared[f"{name}-2-0"] / sum(shared.values()) == pytest.approx(0.3, abs=0.01)
        assert 0.15 < share < 0.5
        assert done.result().revision == 2
    assert asking.failures == []
    assert weights(home, name) == {f"{name}-2-0": 100}

    with Asking(endpoint.url) as asking:
        with pytest.raises(DeploymentError) as caught:
            deploy(**{**keys("three", duration="1m"), "commands": [BROKEN]})
        assert str(caught.value).startswith(f"{name}@3 failed: the canary failed 100.0 % of ")
        assert str(caught.value).endswith(f"; {name}@2 serves on")
        asking.failures.clear()
        asking.answers.clear()
        wait_until(lambda: asking.answers["2"] >= 20, 30)
        assert asking.failures == []
    assert weights(home, name) == {f"{name}-2-0": 100}
    artifacts = prefect_server.ask("/artifacts/filter", artifacts={"key": {"any_": [f"{name}-canary"]}})
    assert {artifact["description"].split(".")[0] for artifact in artifacts} == {
        f"The canary of {name}: promote",
        f"The canary of {name}: reject",
    }


def test_a_person_decides_in_the_prefect_ui_or_with_a_command(
    deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer, cli: CommandLine
) -> None:
    deploy(**keys("one"))
    terms = {"duration": "0s", "promote": "manual"}
    with ThreadPoolExecutor() as pool:
        done = pool.submit(deploy, **keys("two", **terms))
        (run,) = wait_until(lambda: paused(prefect_server, name), 60)
        assert len(weights(home, name)) == 2
        prefect_server.ask(f"/flow_runs/{run['id']}/resume")
        assert done.result().revision == 2
        assert weights(home, name) == {f"{name}-2-0": 100}

        done = pool.submit(deploy, **keys("three", **terms))
        (run,) = wait_until(lambda: paused(prefect_server, name), 60)
        prefect_server.ask(f"/flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
        with pytest.raises(DeploymentError, match="the canary was cancelled instead of promoted"):
            done.result()
        assert weights(home, name) == {f"{name}-2-0": 100}
        assert "no canary waits to be promoted" in cli("promote", name).err

        done = pool.submit(deploy, **keys("four", **terms))
        wait_until(lambda: paused(prefect_server, name), 60)
        (service,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
        assert service["state"] == "waiting"
        assert f"prefect-dstack promote {name}" in service["problems"][0]
        cli.ok("promote", name)
        assert done.result().revision == 4
        assert weights(home, name) == {f"{name}-4-0": 100}
