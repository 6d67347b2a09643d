"""Tokens against a real gateway: who is let in, who no longer is, and where a token never is."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefect_dstack import (
    NewToken,
    create_token,
    delete_service,
    deploy_service,
    list_tokens,
    reconcile_services,
    revoke_token,
    stop_service,
)
from prefect_dstack.errors import ConfigurationError, NotFoundError
from prefect_dstack.gateways.gateway import Gateway
from tests.command_line import CommandLine
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

ECHO = Path(__file__).with_name("echo.py")


@pytest.fixture
def service(prefect_server: PrefectServer, home: Home, name: str) -> Iterator[dict[str, Any]]:
    """The configuration of a service that tells what headers it was sent, and that needs a token."""
    commands = [f"exec python3 '{ECHO}'"]
    yield {"type": "service", "name": name, "port": 8000, "auth": True, "commands": commands}
    stop_service(name)
    for token in list_tokens():
        revoke_token(token.id)


def ask(port: int, token: str | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """The status, and the JSON that came with it."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/", headers=headers)
        response = connection.getresponse()
        return response.status, json.load(response)


def test_only_a_token_of_the_service_opens_it(service: dict[str, Any], home: Home) -> None:
    endpoint = deploy_service(service)
    assert endpoint.url == f"http://127.0.0.1:{home.port}"
    mine = create_token(service["name"], expires="1d")
    everywhere = create_token()
    local = create_token(gateway="local")
    # A service of another name, which is stopped.
    other_name = f"{service['name']}-b"
    deploy_service({**service, "name": other_name})
    other = create_token(other_name)

    for token in (mine, everywhere, local):
        status, seen = ask(home.port, token.value.get_secret_value())
        assert status == 200
        assert "authorization" not in seen
    for wrong in (
        None,
        "",
        "dst_",
        other.value.get_secret_value(),
        mine.value.get_secret_value()[:-1],
        mine.sha256,
    ):
        status, answer = ask(home.port, wrong)
        assert (status, answer["error"]["code"]) == (401, 401)
    assert ask(home.port, None, Authorization=f"Basic {mine.value.get_secret_value()}")[0] == 401
    stop_service(other_name)


def test_the_application_sees_the_header_only_where_it_asks_for_it(
    service: dict[str, Any], home: Home
) -> None:
    deploy_service({**service, "auth": {"forward": True}})
    token = create_token(service["name"]).value.get_secret_value()

    assert ask(home.port, token) == (200, {**ask(home.port, token)[1], "authorization": f"Bearer {token}"})


def test_a_revoked_token_opens_nothing_within_a_second_on_open_connections_too(
    service: dict[str, Any], home: Home
) -> None:
    deploy_service(service)
    # Whatever else this machine is doing, the quickest of three tells what revoking takes.
    tokens, kept = [create_token(service["name"]) for _ in range(3)], create_token(service["name"])
    processes = haproxy_processes(home)

    took = [revocation(home.port, token) for token in tokens]

    assert min(took) < 1
    assert ask(home.port, kept.value.get_secret_value())[0] == 200
    assert haproxy_processes(home) == processes, "revoking must not reload"
    assert [known.id for known in list_tokens(service["name"])] == [kept.id]
    with pytest.raises(NotFoundError, match="no such token"):
        revoke_token(tokens[0].id)


def revocation(port: int, token: NewToken) -> float:
    """The seconds until a token that is revoked opens nothing, on a connection that was open before."""
    headers = {"Authorization": f"Bearer {token.value.get_secret_value()}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:

        def status() -> int:
            connection.request("GET", "/", headers=headers)
            response = connection.getresponse()
            response.read()
            return response.status

        assert status() == 200
        with ThreadPoolExecutor() as executor:
            started = time.monotonic()
            revoked = executor.submit(revoke_token, token.id)
            wait_until(lambda: status() == 401, 30, "the token opens nothing", interval=0.01)
            took = time.monotonic() - started
            revoked.result()
        return took


def test_reconcile_finishes_what_a_revocation_that_was_cut_off_has_begun(
    service: dict[str, Any], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy_service(service)
    token = create_token(service["name"])

    def cut_off(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Gateway, "_run", cut_off)
        with pytest.raises(KeyboardInterrupt):
            revoke_token(token.id)

    assert "finish a change of gateway local" in reconcile_services(dry_run=True)
    assert "finish a change of gateway local" in reconcile_services()

    assert [known.id for known in list_tokens(service["name"])] == [token.id]
    assert ask(home.port, token.value.get_secret_value())[0] == 200
    assert "finish a change of gateway local" not in reconcile_services(dry_run=True)
    revoke_token(token.id)
    assert ask(home.port, token.value.get_secret_value())[0] == 401


def test_a_token_ends_by_itself(service: dict[str, Any], home: Home) -> None:
    deploy_service(service)
    token = create_token(service["name"], expires=timedelta(seconds=12)).value.get_secret_value()

    assert ask(home.port, token)[0] == 200
    wait_until(lambda: ask(home.port, token)[0] == 401, 20, "the token ends")


def test_a_token_outlives_revisions_a_stop_and_the_gateway(service: dict[str, Any], home: Home) -> None:
    deploy_service(service)
    token = create_token(service["name"]).value.get_secret_value()
    deploy_service(service, force=True)
    assert ask(home.port, token)[0] == 200

    # The gateway of this machine goes with its last service.
    stop_service(service["name"])
    with pytest.raises(ConnectionRefusedError):
        ask(home.port, token)
    deploy_service(service)

    assert ask(home.port, token)[0] == 200
    assert ask(home.port)[0] == 401


def test_what_makes_no_sense_is_refused(service: dict[str, Any]) -> None:
    with pytest.raises(NotFoundError, match="nobody: there is no such service"):
        create_token("nobody")
    with pytest.raises(NotFoundError, match=r"nowhere: there is no such gateway; there are: .*local"):
        create_token(gateway="nowhere")
    with pytest.raises(ConfigurationError, match="not both"):
        create_token(service["name"], "local")
    assert list_tokens() == []
    deploy_service(service)


def test_the_token_is_in_the_one_answer_and_nowhere_else(
    service: dict[str, Any], home: Home, cli: CommandLine, tmp_path: Path, prefect_server: PrefectServer
) -> None:
    file = tmp_path / "token.dstack.yml"
    file.write_text(json.dumps(service))
    hint = f"prefect-dstack token create --service {service['name']}"
    assert hint in cli.ok("apply", "-f", file, "-y").err
    created = cli.ok("token", "create", "--service", service["name"], "--expires", "30d", "--json").json
    token, secret = created["token"], created["token"].rpartition("_")[2]
    assert created["service"] == service["name"]
    assert ask(home.port, token)[0] == 200
    assert hint not in cli.ok("apply", "-f", file, "-y", "--force").err
    shown = [cli.ok("token", "list").out, cli.ok("token", "list", "--json").out, cli.ok("ps", "--json").out]
    assert created["id"] in shown[0]

    found = [f"output {number}" for number, text in enumerate(shown) if secret in text]
    for root in (home.path, prefect_server.directory):
        found += [
            str(path) for path in root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
        ]
    found += [f"process {it.pid}" for it in psutil.process_iter() if holds(it, secret)]
    assert found == []
    # The search would have found it: what stands for it is there.
    assert any(created["id"].encode() in path.read_bytes() for path in prefect_server.directory.glob("*.db*"))
    assert (
        token_map(home)
        .read_text()
        .startswith(f"{service['name']}/{hashlib.sha256(token.encode()).hexdigest()} ")
    )

    assert f"token {created['id']} is revoked" in cli.ok("token", "revoke", created["id"]).out
    assert ask(home.port, token)[0] == 401
    assert cli("token", "revoke", created["id"]).code == 2


def token_map(home: Home) -> Path:
    return home.state / "gateways" / "local" / "tokens.map"


def haproxy_processes(home: Home) -> set[int]:
    return {it.pid for it in home.processes() if "haproxy" in it.name()}


def holds(process: psutil.Process, secret: str) -> bool:
    try:
        return any(secret in text for text in (*process.cmdline(), *process.environ().values()))
    except (psutil.Error, OSError):
        return False


def test_a_service_that_gets_the_name_of_a_deleted_one_is_not_opened_by_its_tokens(
    service: dict[str, Any], home: Home
) -> None:
    deploy_service(service)
    token = create_token(service["name"]).value.get_secret_value()
    assert ask(home.port, token)[0] == 200

    stop_service(service["name"])
    delete_service(service["name"])
    assert list_tokens(service=service["name"]) == []
    deploy_service(service)

    assert ask(home.port, token)[0] == 401
