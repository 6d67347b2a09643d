"""What Prometheus is told is what clients have seen, over any number of reloads and redeploys."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from prefect_dstack import Endpoint, scale_service
from prefect_dstack.errors import ConflictError
from prefect_dstack.hosts.ports import free_port
from prefect_dstack.resident.controller import run_controller
from prefect_dstack.resident.metrics import MetricsServer
from tests.flows.conftest import deploy, stop
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

__all__ = ["deploy", "stop"]

pytestmark = pytest.mark.integration

Labels = dict[str, str]

# Answers with the status that is asked for; deployments, which ask too, get one that clients never ask for.
APPLICATION = """
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        deployment = self.headers["User-Agent"] == "prefect-dstack"
        time.sleep(float(self.headers["X-Takes"] or 0))
        self.send_response(302 if deployment else int(self.path.strip("/") or 200))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
OF_DEPLOYMENTS = "3xx"
COMMANDS = [f"exec python3 -c '{APPLICATION}'"]


class Clients:
    """Ask without a pause, each on a connection that is kept, and count the answers by their status."""

    def __init__(self, url: str, number: int = 2) -> None:
        self.port = urlsplit(url).port or 80
        self.counted: Counter[str] = Counter()
        self._lock, self._done = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(one,)) for one in range(number)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        connection, turn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), number
        while not self._done.wait(0.002):
            turn += 1
            connection.request("GET", ("/", "/404", "/200", "/500")[turn % 4])
            answer = connection.getresponse()
            answer.read()
            with self._lock:
                self.counted[f"{answer.status // 100}xx"] += 1
        connection.close()


@pytest.fixture
def metrics(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL at which a controller, which runs meanwhile, publishes metrics."""
    port = free_port()
    monkeypatch.setenv("PREFECT_DSTACK_METRICS_PORT", str(port))
    end = threading.Event()
    thread = threading.Thread(target=run_controller, args=(end,))
    thread.start()
    yield f"http://127.0.0.1:{port}/metrics"
    end.set()
    thread.join(60)
    assert not thread.is_alive()


def scrape(url: str) -> dict[str, list[tuple[Labels, float]]]:
    """The samples by their names, as Prometheus reads them."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def requests(url: str, service: str) -> dict[tuple[str, str], int]:
    """The answers of a service by replica and class of status."""
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in scrape(url).get("prefect_dstack_requests_total", ()):
        if labels["service"] == service and value:
            found[labels["replica"], labels["code"]] += int(value)
    return dict(found)


def by_code(url: str, service: str) -> Counter[str]:
    totals: Counter[str] = Counter()
    for (_, code), number in requests(url, service).items():
        if code != OF_DEPLOYMENTS:
            totals[code] += number
    return totals


def durations(url: str, service: str) -> dict[str, dict[str, int]]:
    """How many answers of each replica began within how many seconds, and their number by `_count`."""
    found: dict[str, dict[str, int]] = {}
    samples = scrape(url)
    for labels, value in samples.get("prefect_dstack_first_byte_seconds_bucket", ()):
        if labels["service"] == service:
            found.setdefault(labels["replica"], {})[labels["le"]] = int(value)
    for labels, value in samples.get("prefect_dstack_first_byte_seconds_count", ()):
        if labels["service"] == service:
            assert found[labels["replica"]]["+Inf"] == int(value)
    return found


def redeploy(deploy: Callable[..., Endpoint], rounds: int, name: str, url: str) -> tuple[Counter[str], str]:
    """Deploy again and again under load, with a reload of the gateway each time."""
    endpoint = deploy(commands=COMMANDS, replicas=2, probes=None)
    seen: Counter[tuple[str, str]] = Counter()
    took: dict[str, dict[str, int]] = {}
    with Clients(endpoint.url) as clients:
        for number in range(rounds):
            deploy(commands=COMMANDS, replicas=2, probes=None, force=True)
            # Another setting of the route takes a reload.
            deploy(commands=COMMANDS, replicas=2, probes=None, max_concurrency=100 + number)
            now = requests(url, name)
            assert all(now.get(key, 0) >= value for key, value in seen.items()), "they never fall"
            seen = Counter(now)
            since, took = took, durations(url, name)
            for replica, within in since.items():
                assert all(took[replica][bound] >= number for bound, number in within.items())
    return clients.counted, endpoint.url


def check_counters(deploy: Callable[..., Endpoint], rounds: int, name: str, url: str) -> None:
    counted, _ = redeploy(deploy, rounds, name, url)

    wait_until(lambda: by_code(url, name) == counted, 20, f"{name} has answered {counted}")
    found = requests(url, name)
    assert len({replica for replica, _ in found}) >= 2 * (rounds + 1), "of each revision"
    assert not [code for replica, code in found if not replica], "the gateway itself has answered none"
    answers: Counter[str] = Counter()
    for (replica, _), number in found.items():
        answers[replica] += number
    assert {replica: within["+Inf"] for replica, within in durations(url, name).items()} == answers


def test_each_answer_is_in_the_buckets_of_its_time(
    deploy: Callable[..., Endpoint], name: str, metrics: str
) -> None:
    endpoint = deploy(commands=COMMANDS, replicas=1, probes=None)
    replica = f"{name}-1-0"
    wait_until(lambda: replica in durations(metrics, name), 20, "what the deployment asked is counted")
    before = durations(metrics, name)[replica]

    slow = urllib.request.Request(endpoint.url, headers={"X-Takes": "0.2"})
    for _ in range(5):
        assert urllib.request.urlopen(slow, timeout=10).status == 200

    def more() -> dict[str, int]:
        return {bound: number - before[bound] for bound, number in durations(metrics, name)[replica].items()}

    wait_until(lambda: more()["+Inf"] == 5, 20, "they are counted")
    assert (more()["0.1"], more()["0.5"]) == (0, 5)
    spent = scrape(metrics)["prefect_dstack_first_byte_seconds_sum"]
    assert next(seconds for labels, seconds in spent if labels["replica"] == replica) >= 1.0


def test_counters_are_what_clients_count(deploy: Callable[..., Endpoint], name: str, metrics: str) -> None:
    check_counters(deploy, 2, name, metrics)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_counters_are_exact_over_20_redeploys_and_20_reloads(
    deploy: Callable[..., Endpoint], name: str, metrics: str
) -> None:
    check_counters(deploy, 20, name, metrics)


def test_shows_how_replicas_are_and_what_the_gateway_answers_itself(
    deploy: Callable[..., Endpoint], name: str, metrics: str
) -> None:
    deploy(commands=COMMANDS, replicas=2, probes=None, cors={"allow_origins": "*"})
    endpoint = scale_service(name, 1)

    asked = {"Origin": "http://a.test", "Access-Control-Request-Method": "GET"}
    for _ in range(3):
        preflight = urllib.request.Request(endpoint.url, method="OPTIONS", headers=asked)
        assert urllib.request.urlopen(preflight, timeout=10).status == 204

    wait_until(lambda: requests(metrics, name).get(("", "2xx")) == 3, 20, "they are counted")

    def value(metric: str, **labels: str) -> float | None:
        wanted = {"service": name, **labels}
        found = [value for its, value in scrape(metrics).get(metric, ()) if wanted.items() <= its.items()]
        return found[0] if found else None

    wait_until(lambda: value("prefect_dstack_replicas_wanted") == 1, 20, "one is wanted")
    assert value("prefect_dstack_replicas_serving") == 1
    assert value("prefect_dstack_replica_up", replica=f"{name}-1-0", revision="1") == 1
    assert value("prefect_dstack_replica_up", replica=f"{name}-1-1") is None
    assert value("prefect_dstack_requests_in_flight", replica=f"{name}-1-0") == 0
    assert value("prefect_dstack_requests_held") == 0
    up = {labels["gateway"]: value for labels, value in scrape(metrics)["prefect_dstack_gateway_up"]}
    assert up == {"local": 1}


def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    server = MetricsServer("127.0.0.1", port)
    with pytest.raises(ConflictError, match=f"127.0.0.1:{port}: .*; choose another metrics_port"):
        MetricsServer("127.0.0.1", port)
    server.close()
