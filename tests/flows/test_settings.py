"""New settings of a service that serves: proven before they are in force, and taken back if they do harm."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from prefect_dstack import Endpoint
from prefect_dstack.errors import ConflictError, PrefectDstackError, ReplicaNotReadyError
from tests.command_line import CommandLine
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.flows.seen import record_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]

PATHS = Path(__file__).with_name("paths.py")
KEYS = {
    "commands": [f"exec python3 {PATHS}"],
    "probes": [{"type": "http", "url": "/health", "interval": "1s"}],
}


def probe(url: str, **keys: Any) -> dict[str, Any]:
    return {"probes": [{"type": "http", "url": url, "interval": "1s", **keys}]}


def route(home: Home, name: str) -> dict[str, Any]:
    """What the gateway knows of the service."""
    state = json.loads((home.state / "gateways" / "local" / "state.json").read_text())
    found = state["routes"][name]
    assert isinstance(found, dict)
    return found


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def refused(
    deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
) -> Callable[[Mapping[str, Any], Mapping[str, Any], type[PrefectDstackError], str], None]:
    """Deploys, then tries new settings, which are refused and change nothing; requests go on meanwhile."""

    def try_settings(
        keys: Mapping[str, Any], changes: Mapping[str, Any], kind: type[PrefectDstackError], message: str
    ) -> None:
        endpoint = deploy(**{**KEYS, **keys})
        before = route(home, name)
        with Asking(endpoint.url) as asking:
            wait_until(lambda: asking.answers["1"] > 10, 20, "it answers")
            with pytest.raises(kind, match=message) as caught:
                deploy(**{**KEYS, **keys, **changes})
            asking.answers.clear()
            wait_until(lambda: asking.answers["1"] > 10, 20, "it answers on")
        assert asking.failures == []
        assert str(caught.value).endswith(f"; {name}@1 serves on")
        assert route(home, name) == before
        record = record_of(prefect_server, name)
        assert (record.active, record.endpoint, record.revision(2).outcome) == (1, endpoint, "failed")
        assert not deploy(**{**KEYS, **keys}).changed

    return try_settings


Refused = Callable[[Mapping[str, Any], Mapping[str, Any], type[PrefectDstackError], str], None]


@pytest.mark.parametrize(
    ("keys", "changes", "message"),
    [
        ({}, probe("/nothing"), "GET /nothing: 404 Not Found"),
        ({}, {"path_prefix": "/api", "strip_prefix": False}, "GET /api/health: 404 Not Found"),
        (probe("/slow"), {"timeouts": {"request": "1s"}}, "GET /slow: no answer within 1 s"),
    ],
    ids=["probe", "prefix", "timeout"],
)
def test_that_take_the_application_away_are_refused_before_they_are_in_force(
    refused: Refused, keys: Mapping[str, Any], changes: Mapping[str, Any], message: str
) -> None:
    refused(keys, changes, ReplicaNotReadyError, message)


def test_whose_port_is_another_programs_are_refused(deploy: Deploy, home: Home, name: str) -> None:
    endpoint = deploy(**KEYS)
    before = route(home, name)
    with (
        socket.create_server(("127.0.0.1", home.port + 3)),
        Asking(endpoint.url) as asking,
        pytest.raises(ConflictError, match=f"port {home.port + 3} .*in use by another program"),
    ):
        deploy(**KEYS, port=f"{home.port + 3}:8000")
    assert asking.failures == []
    assert route(home, name) == before


def test_with_which_the_gateways_own_checks_fail_are_taken_back_before_they_cost_a_request(
    refused: Refused,
) -> None:
    # The gateway names no port to the application; a probe of ours does.
    refused(
        {"env": {"REFUSED_HOSTS": "localhost"}, "probes": None},
        probe("/health"),
        ReplicaNotReadyError,
        "GET /health: 400 Bad Request, asked as the gateway does, for host localhost",
    )


def test_with_which_the_gateway_finds_no_replica_well_are_taken_back_at_once(
    deploy: Deploy, home: Home, name: str
) -> None:
    # What we ask for has this header, by the way; what the gateway asks for has not.
    keys = {**KEYS, "env": {"NEEDED_HEADER": "Accept-Encoding"}, "probes": None}
    endpoint = deploy(**keys)
    before = route(home, name)

    with pytest.raises(ReplicaNotReadyError, match=r"does not pass the checks of gateway 'local': .*400"):
        deploy(**{**keys, **probe("/health")})
    assert route(home, name) == before
    assert status(endpoint.url) == 200


def test_a_static_server_keeps_its_probe_when_the_new_one_finds_nothing(
    cli: CommandLine, deploy: Deploy, name: str, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text('{"revision": "1"}')
    file = tmp_path / "static.dstack.yml"

    def configure(path: str) -> Path:
        keys = {
            "type": "service",
            "name": name,
            "port": 8000,
            "commands": [f'exec python3 -m http.server "$PORT" --bind 127.0.0.1 -d {site}'],
            "probes": [{"type": "http", "url": path}],
        }
        file.write_text(yaml.safe_dump(keys))
        return file

    url = cli.ok("apply", "-f", configure("/"), "-y", "--json").json["endpoint"]["url"]
    with Asking(url) as asking:
        wait_until(lambda: asking.answers["1"] > 10, 20, "it answers")
        outcome = cli("apply", "-f", configure("/healthz"), "-y")
        asking.answers.clear()
        wait_until(lambda: asking.answers["1"] > 10, 20, "it answers on")
    assert outcome.code == 2
    assert "GET /healthz: 404 File not found" in outcome.err
    assert asking.failures == []


def test_that_do_no_harm_cost_no_request(deploy: Deploy) -> None:
    changes: list[dict[str, Any]] = [
        {"client_max_body_size": "1KB"},
        {"max_concurrency": 1, "queue_timeout": "5s"},
        {"timeouts": {"request": "1s"}},
        {"rate_limits": [{"prefix": "/elsewhere", "rps": 1}]},
        {"probes": None},
        probe("/"),
    ]
    endpoint = deploy(**KEYS)
    pid = get(endpoint.url)["pid"]
    with Asking(endpoint.url) as asking:
        for number, change in enumerate(changes, 2):
            assert deploy(**{**KEYS, **change}).revision == number
            asking.answers.clear()
            wait_until(lambda: asking.answers["1"] > 10, 20, "it answers on")
            assert asking.failures == [], change
    assert get(endpoint.url)["pid"] == pid


def test_that_ask_for_a_token_are_what_the_user_wants(deploy: Deploy) -> None:
    endpoint = deploy(**KEYS)

    assert deploy(**KEYS, auth=True).revision == 2
    assert status(endpoint.url) == 401


def test_that_limit_requests_are_in_force_though_we_ask_too(deploy: Deploy) -> None:
    endpoint = deploy(**KEYS)

    with Asking(endpoint.url):
        limited = deploy(**KEYS, rate_limits=[{"prefix": "/", "rps": 0.1}])
    assert limited.revision == 2
    assert status(endpoint.url) == 429


def test_of_a_prefix_that_is_stripped_move_the_application(deploy: Deploy) -> None:
    endpoint = deploy(**KEYS)

    moved = deploy(**KEYS, path_prefix="/api")
    assert (moved.revision, moved.url) == (2, f"{endpoint.url}/api")
    assert get(f"{moved.url}/health")["revision"] == "1"
    # What it answered so far it need not answer better: the application itself does not know this path.
    assert deploy(**KEYS, path_prefix="/api", client_max_body_size="1KB").revision == 3


def test_of_another_port_move_the_application(deploy: Deploy, home: Home) -> None:
    deploy(**KEYS)

    moved = deploy(**KEYS, port=f"{home.port + 2}:8000")
    assert (moved.url, get(moved.url)["revision"]) == (f"http://127.0.0.1:{home.port + 2}", "1")


def test_an_application_that_answers_nothing_well_may_have_new_ones(deploy: Deploy) -> None:
    keys = {"commands": KEYS["commands"], "path_prefix": "/odd", "strip_prefix": False, "probes": None}
    endpoint = deploy(**keys)
    assert status(endpoint.url) == 404

    assert deploy(**keys, client_max_body_size="1KB").revision == 2


def test_are_proven_on_what_is_alive_and_what_has_ended_is_replaced(
    deploy: Deploy, home: Home, name: str
) -> None:
    endpoint = deploy(**KEYS, replicas=2)
    (supervisor,) = [it for it in home.processes() if it.cmdline()[-1].endswith(f"/replicas/{name}-1-0")]
    ended = [supervisor, *supervisor.children(recursive=True)]
    for process in ended:  # the one that would start it again first
        process.kill()
    psutil.wait_procs(ended, 10)

    changed = deploy(**KEYS, replicas=2, retain=3)

    assert (changed.revision, changed.replicas) == (2, endpoint.replicas)
    assert get(endpoint.url)["revision"] == "1"
