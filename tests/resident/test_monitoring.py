"""`deploy/prometheus` and `deploy/grafana` work with a real Prometheus and what a controller publishes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from prefect_dstack import Endpoint
from prefect_dstack.hosts.ports import free_port
from tests.flows.conftest import deploy, stop
from tests.polling import wait_until
from tests.resident.test_metrics import COMMANDS, metrics, scrape

__all__ = ["deploy", "metrics", "stop"]

FILES = Path(__file__).parents[2] / "deploy"
RULES = FILES / "prometheus"
DASHBOARD = json.loads((FILES / "grafana" / "dashboard.json").read_text())

needs_prometheus = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's prometheus")


def expressions() -> list[str]:
    """What the panels of the dashboard show, as Prometheus is asked for it."""
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$service", ".*")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


@needs_prometheus
@pytest.mark.parametrize(
    "check",
    [
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_accepts_it(check: list[str]) -> None:
    done = subprocess.run(["promtool", *check], cwd=RULES, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (RULES / "alerts.yml").read_text()))
    firing = re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", (RULES / "alerts_test.yml").read_text())

    assert alerts == set(firing)


@pytest.fixture
def prometheus(metrics: str, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Asks a real Prometheus, which scrapes the controller as `deploy/prometheus` says, but more often."""
    shutil.copytree(RULES, tmp_path / "prometheus")
    file, port = tmp_path / "prometheus" / "prometheus.yml", free_port()
    text = file.read_text().replace("127.0.0.1:9480", urlsplit(metrics).netloc).replace("15s", "1s")
    file.write_text(text)
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
        stdin=subprocess.DEVNULL,
    )

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            assert process.poll() is None, "Prometheus has ended"
            return None

    wait_until(lambda: ask("status/buildinfo"), 60, "Prometheus answers")
    yield ask
    process.terminate()
    process.wait(30)


@needs_prometheus
@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_prometheus_shows_what_happens(
    deploy: Callable[..., Endpoint], name: str, metrics: str, prometheus: Callable[[str], Any]
) -> None:
    endpoint = deploy(commands=COMMANDS, replicas=2, probes=None)
    asked = 0

    def value(expression: str) -> float | None:
        nonlocal asked
        with urllib.request.urlopen(f"{endpoint.url}/200", timeout=10) as answer:
            asked += answer.status == 200
        found = (prometheus(f"query?query={quote(expression)}") or {"result": []})["result"]
        return float(found[0]["value"][1]) if found else None

    wait_until(
        lambda: value(f'prefect_dstack_replicas_serving{{service="{name}"}}') == 2, 60, "it is scraped"
    )
    rate = f'sum(rate(prefect_dstack_requests_total{{service="{name}", code="2xx"}}[1m]))'
    wait_until(lambda: (value(rate) or 0) > 0, 60, "there is a rate", interval=0.3)
    published = set(scrape(metrics))
    for expression in expressions():
        assert set(re.findall(r"prefect_dstack_\w+", expression)) <= published
        assert prometheus(f"query?query={quote(expression)}")["result"], expression

    rules = {rule["name"]: rule for group in prometheus("rules")["groups"] for rule in group["rules"]}
    assert len(rules) == 8
    assert all(rule["health"] in ("ok", "unknown") for rule in rules.values()), rules
    assert [name for name, rule in rules.items() if rule["state"] == "firing"] == []
