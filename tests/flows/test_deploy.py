"""From a configuration to an endpoint, through real flow runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefect_dstack import Endpoint
from prefect_dstack.errors import (
    ConfigurationError,
    ConflictError,
    NoOfferError,
    NotFoundError,
    ReplicaExitedError,
    ReplicaNotReadyError,
    UnsupportedKeyError,
)
from tests.flows.asking import Asking
from tests.flows.conftest import get, hello
from tests.flows.seen import events_of, record_of, runs_of, tasks_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]


def nothing_runs(home: Home) -> None:
    assert home.leftovers() == []


class TestFirstDeployment:
    def test_answers_and_is_all_in_prefect(
        self, deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
    ) -> None:
        endpoint = deploy(env={"GREETING": "Ahoy"})

        assert endpoint == Endpoint(
            url=f"http://127.0.0.1:{home.port}", service=name, revision=1, replicas=[f"{name}-1-0"]
        )
        assert get(endpoint.url)["greeting"] == "Ahoy"
        assert get(endpoint.url)["revision"] == "1"

        (run,) = runs_of(prefect_server, "deploy", name)
        assert run["state"]["type"] == "COMPLETED"
        assert tasks_of(prefect_server, run) == [
            "create-gateway local",
            f"provision-instance {name}-1-0",
            f"launch-replica {name}-1-0",
            f"wait-until-ready {name}-1-0",
            f"register-route {name}",
            f"update-route {name}",
            f"verify-endpoint {endpoint.url}",
        ]

        record = record_of(prefect_server, name)
        assert (record.active, record.endpoint, record.deploying) == (1, endpoint, None)
        assert record.revision(1).configuration["env"] == {"GREETING": "Ahoy"}
        assert record.revision(1).flow_run == run["id"]

        found = prefect_server.ask(
            "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}}, sort="KEY_ASC"
        )
        # Prefect notes where it keeps the result of a flow run in an artifact without a key.
        artifacts = [it for it in found if it["key"] is not None]
        assert [(it["key"], it["type"]) for it in artifacts] == [(f"{name}-service", "markdown")]
        for part in (endpoint.url, f"| {name}-1-0 | process |", f"| {name}@1 | active |"):
            assert part in artifacts[0]["data"]

        event = wait_until(
            lambda: events_of(prefect_server, "prefect-dstack.service.deployed", name), 30, "the event"
        )
        assert event[0]["resource"]["prefect-dstack.revision"] == "1"
        assert event[0]["payload"]["url"] == endpoint.url

    def test_shows_what_it_does_in_the_log_of_the_run(
        self, deploy: Deploy, name: str, prefect_server: PrefectServer
    ) -> None:
        deploy()

        (run,) = runs_of(prefect_server, "deploy", name)

        def said() -> str:
            logs = prefect_server.ask("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
            text = "\n".join(it["message"] for it in logs)
            return text if f"{name}@1: serves at" in text else ""

        text = wait_until(said, 30, "the log of the run")
        assert f"{name}-1-0: starting on port" in text
        assert f"{name}-1-0: ready after" in text

    def test_of_several_replicas_balances_among_them(self, deploy: Deploy, name: str) -> None:
        endpoint = deploy(replicas=3)

        pids = {get(endpoint.url)["pid"] for _ in range(30)}

        assert endpoint.replicas == [f"{name}-1-{number}" for number in range(3)]
        assert len(pids) == 3

    def test_from_a_file_a_text_and_a_model_is_the_same(
        self, deploy: Deploy, name: str, tmp_path: Path
    ) -> None:
        import yaml

        from prefect_dstack import load_configuration

        text = yaml.safe_dump(hello(name))
        (tmp_path / "serve.dstack.yml").write_text(text)
        first = deploy(tmp_path / "serve.dstack.yml")

        same = [
            deploy(str(tmp_path / "serve.dstack.yml")),
            deploy(load_configuration(tmp_path / "serve.dstack.yml")),
        ]

        assert [(it.revision, it.changed, it.replicas) for it in same] == [(1, False, first.replicas)] * 2
        # A text has no directory of its own: its commands start in the current one.
        assert deploy(text).revision == 2

    def test_publishes_where_it_is_told_to(self, deploy: Deploy, home: Home) -> None:
        port = home.port + 2

        assert deploy(port=f"{port}:8000").url == f"http://127.0.0.1:{port}"
        assert get(f"http://127.0.0.1:{port}")["greeting"]

    def test_with_a_model_tells_what_an_openai_client_needs(self, deploy: Deploy) -> None:
        endpoint = deploy(model="llama")

        assert endpoint.openai_base_url == f"{endpoint.url}/v1"
        assert endpoint.model == "llama"


class TestNextDeployment:
    def test_of_the_same_does_nothing(self, deploy: Deploy, name: str, prefect_server: PrefectServer) -> None:
        first = deploy()
        pid = get(first.url)["pid"]

        again = deploy()

        assert again == first.model_copy(update={"changed": False})
        assert get(first.url)["pid"] == pid
        assert tasks_of(prefect_server, runs_of(prefect_server, "deploy", name)[1]) == []
        assert record_of(prefect_server, name).last_revision == 1

    def test_takes_over_without_losing_a_request(
        self, deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
    ) -> None:
        endpoint = deploy()
        with Asking(endpoint.url) as asking:
            wait_until(lambda: asking.answers["1"] > 20, 10, "the first revision answers")
            later = deploy(env={"GREETING": "new"})
            wait_until(lambda: asking.answers["2"] > 20, 10, "the second revision answers")

        assert asking.failures == []
        assert (later.url, later.revision, later.replicas) == (endpoint.url, 2, [f"{name}-2-0"])
        assert [it.name for it in home.state.glob("replicas/*/")] == [f"{name}-2-0"]
        record = record_of(prefect_server, name)
        assert [(it.number, it.outcome) for it in record.revisions] == [(1, "superseded"), (2, "active")]

    def test_of_settings_only_keeps_the_replicas(self, deploy: Deploy, name: str) -> None:
        endpoint = deploy()
        pid = get(endpoint.url)["pid"]

        later = deploy(client_max_body_size="1MB", max_concurrency=2)

        assert (later.revision, later.replicas, later.changed) == (2, [f"{name}-1-0"], True)
        assert get(endpoint.url)["pid"] == pid

    def test_by_force_replaces_what_has_not_changed(self, deploy: Deploy) -> None:
        endpoint = deploy()
        pid = get(endpoint.url)["pid"]

        assert deploy(force=True).revision == 2
        assert get(endpoint.url)["pid"] != pid

    def test_with_more_and_fewer_replicas_changes_their_number(
        self, deploy: Deploy, home: Home, name: str
    ) -> None:
        deploy(replicas=1)

        more = deploy(replicas=3)
        fewer = deploy(replicas=2)

        assert more.replicas == [f"{name}-1-0", f"{name}-1-1", f"{name}-1-2"]
        assert fewer.replicas == [f"{name}-1-0", f"{name}-1-1"]
        assert len(list(home.state.glob("replicas/*/"))) == 2
        assert len({get(fewer.url)["pid"] for _ in range(20)}) == 2

    def test_repairs_what_has_gone(self, deploy: Deploy, home: Home, name: str) -> None:
        endpoint = deploy()
        lock = home.state / "replicas" / f"{name}-1-0" / "supervisor.lock"
        os.kill(int(lock.read_text()), signal.SIGKILL)

        deploy()

        assert get(endpoint.url)["greeting"]

    def test_waits_for_the_one_before_it(self, deploy: Deploy, name: str) -> None:
        outcomes: list[Endpoint] = []
        threads = [
            threading.Thread(target=lambda n=number: outcomes.append(deploy(env={"N": str(n)})))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(outcomes) == 2
        assert get(outcomes[0].url)["revision"] == str(max(it.revision for it in outcomes))


class TestPorts:
    @pytest.fixture
    def taken(self, home: Home) -> Iterator[int]:
        """The gateway's base port, in use by another program."""
        with socket.create_server(("127.0.0.1", home.port)):
            yield home.port

    def test_the_next_free_one_is_taken_and_kept(
        self, deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
    ) -> None:
        from prefect_dstack import deploy_service, stop_service

        other = f"{name}b"
        first = deploy()
        with contextlib.ExitStack() as stack:
            second = deploy_service(hello(other))
            stack.callback(stop_service, other)
            again = deploy_service(hello(other, env={"GREETING": "new"}))

            assert [it.url for it in (first, second, again)] == [
                f"http://127.0.0.1:{home.port}",
                f"http://127.0.0.1:{home.port + 1}",
                f"http://127.0.0.1:{home.port + 1}",
            ]
            assert get(second.url)["greeting"] == "new"
            assert get(first.url)["greeting"] != "new"

    def test_of_another_program_is_left_to_it(self, deploy: Deploy, taken: int) -> None:
        assert deploy().url == f"http://127.0.0.1:{taken + 1}"

    def test_of_another_program_cannot_be_asked_for(self, deploy: Deploy, home: Home, taken: int) -> None:
        with pytest.raises(ConflictError, match=f"port {taken} .*is in use by another program"):
            deploy(port=f"{taken}:8000")
        assert not list(home.state.glob("replicas/*/"))


class TestFailure:
    """Each first deployment that fails leaves nothing behind."""

    def test_of_a_command_that_exits_says_its_last_words(
        self, deploy: Deploy, home: Home, name: str, prefect_server: PrefectServer
    ) -> None:
        with pytest.raises(ReplicaExitedError) as raised:
            deploy(commands=["echo one", "echo two >&2", "exit 3"])

        message = str(raised.value)
        assert message == (
            f"{name}@1 failed: {name}-1-0: it exited with code 3 before it was ready; nothing of it is left"
        )
        assert raised.value.report.splitlines() == [message, "    one", "    two"]
        nothing_runs(home)
        (run,) = runs_of(prefect_server, "deploy", name)
        assert run["state"]["type"] == "FAILED"
        assert message in run["state"]["message"]
        record = record_of(prefect_server, name)
        assert (record.active, record.endpoint, record.deploying) == (None, None, None)
        assert record.revision(1).outcome == "failed"

    def test_of_a_command_that_never_listens_says_for_how_long(self, deploy: Deploy, home: Home) -> None:
        with pytest.raises(
            ReplicaNotReadyError, match=r"not ready within 1 s: GET /health: connection refused"
        ):
            deploy(commands=["echo waiting", "exec sleep 300"], rollout={"timeout": "1s"})
        nothing_runs(home)

    def test_of_a_command_that_listens_elsewhere_says_where(self, deploy: Deploy, home: Home) -> None:
        port = home.port + 4

        with pytest.raises(
            ReplicaNotReadyError, match=rf"it listens on {port}; a process must listen on \$PORT"
        ):
            deploy(
                commands=[f"exec python3 -m http.server {port} --bind 127.0.0.1"],
                rollout={"timeout": "3s"},
                probes=None,
            )
        nothing_runs(home)

    def test_tells_its_last_words_without_the_secrets(
        self, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOKEN", "hush-hush-4711")

        with pytest.raises(ReplicaExitedError) as raised:
            deploy(commands=['echo "the token is $TOKEN"', "exit 1"], env=["TOKEN"])
        assert raised.value.details == ("the token is ***",)

    def test_of_one_replica_of_several_takes_the_others_with_it(self, deploy: Deploy, home: Home) -> None:
        broken = 'if [ "$DSTACK_REPLICA_NUM" = 1 ]; then echo broken; exit 1; fi'

        with pytest.raises(ReplicaExitedError, match=r"-1-1: it exited with code 1"):
            deploy(commands=[broken, *hello("x")["commands"]], replicas=3)
        nothing_runs(home)

    @pytest.mark.parametrize(
        ("keys", "error", "message"),
        [
            (
                {"env": {"TOKEN": "${{ secrets.no_such_secret }}"}},
                ConfigurationError,
                "env.TOKEN: secrets.no_such_secret: there is no Prefect Secret block 'no-such-secret'",
            ),
            ({"env": ["NOT_IN_THE_ENVIRONMENT"]}, Exception, "export NOT_IN_THE_ENVIRONMENT="),
            ({"resources": {"memory": "900TB"}}, NoOfferError, "no machine has what it asks for"),
            ({"gateway": "nowhere"}, NotFoundError, "gateway: nowhere: there is none with this name"),
            ({"reservation": "cr-1"}, UnsupportedKeyError, "reservation: is not acted on yet"),
            ({"https": True}, UnsupportedKeyError, "has no HTTPS"),
        ],
    )
    def test_before_anything_is_created(
        self, deploy: Deploy, home: Home, keys: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message.replace(".", r"\.")):
            deploy(**keys)
        nothing_runs(home)

    def test_then_a_working_one_serves(self, deploy: Deploy) -> None:
        with pytest.raises(ReplicaExitedError):
            deploy(commands=["exit 1"])

        assert deploy().revision == 2


class TestEndurance:
    def test_a_killed_replica_comes_back_by_itself(self, deploy: Deploy) -> None:
        endpoint = deploy()
        pid = get(endpoint.url)["pid"]

        os.kill(pid, signal.SIGKILL)

        def again() -> bool:
            with contextlib.suppress(OSError, ValueError):
                return bool(get(endpoint.url)["pid"] != pid)
            return False

        wait_until(again, 20, "another process answers")

    def test_a_killed_gateway_comes_back_by_itself(self, deploy: Deploy, home: Home) -> None:
        endpoint = deploy()
        haproxy = [it for it in home.processes() if it.name() == "haproxy"]
        assert haproxy

        for process in haproxy:
            with contextlib.suppress(psutil.Error):
                process.kill()

        def again() -> bool:
            with contextlib.suppress(OSError, ValueError):
                return bool(get(endpoint.url))
            return False

        wait_until(again, 20, "the gateway answers")

    def test_the_endpoint_does_not_need_the_prefect_server(
        self, deploy: Deploy, prefect_server: PrefectServer
    ) -> None:
        endpoint = deploy()

        with prefect_server.suspended():
            os.kill(get(endpoint.url)["pid"], signal.SIGKILL)

            def answers() -> bool:
                with contextlib.suppress(OSError, ValueError):
                    return bool(get(endpoint.url))
                return False

            wait_until(answers, 20, "it answers, and restarts, while nobody orchestrates")


class TestStop:
    def test_leaves_nothing_but_the_record(
        self, deploy: Deploy, stop: Callable[[], None], home: Home, name: str, prefect_server: PrefectServer
    ) -> None:
        deploy(replicas=2)

        stop()

        nothing_runs(home)
        record = record_of(prefect_server, name)
        assert (record.active, record.endpoint, record.revision(1).outcome) == (None, None, "stopped")
        (run,) = runs_of(prefect_server, "stop", name)
        assert sorted(tasks_of(prefect_server, run)) == sorted(
            [f"{task}-replica {name}-1-{n}" for task in ("drain", "unregister", "remove") for n in range(2)]
            + [f"remove-route {name}"]
        )
        assert wait_until(
            lambda: events_of(prefect_server, "prefect-dstack.service.stopped", name), 30, "the event"
        )

    def test_lets_open_requests_finish(
        self, deploy: Deploy, stop: Callable[[], None], tmp_path: Path
    ) -> None:
        (tmp_path / "slow.py").write_text(SLOW)
        endpoint = deploy(
            commands=[f"exec python3 {tmp_path}/slow.py"], probes=[{"type": "http", "url": "/"}]
        )
        answers: list[Any] = []
        request = threading.Thread(target=lambda: answers.append(get(f"{endpoint.url}/slow", timeout=30)))
        request.start()
        wait_until((tmp_path / "begun").exists, 10, "the request has begun")

        stop()
        request.join()

        assert answers == [{"slow": True}]

    def test_of_an_unknown_service_says_which_there_are(
        self, home: Home, prefect_server: PrefectServer
    ) -> None:
        from prefect_dstack import stop_service

        with pytest.raises(NotFoundError, match="nobody: there is no such service; there are: "):
            stop_service("nobody")

    def test_twice_changes_nothing(self, deploy: Deploy, stop: Callable[[], None], home: Home) -> None:
        deploy()

        stop()
        stop()

        nothing_runs(home)

    def test_then_a_deployment_counts_on(self, deploy: Deploy, stop: Callable[[], None], home: Home) -> None:
        deploy()
        stop()

        endpoint = deploy()

        assert (endpoint.revision, endpoint.url) == (2, f"http://127.0.0.1:{home.port}")

    def test_waits_for_open_requests_no_longer_than_the_file_says(
        self, deploy: Deploy, stop: Callable[[], None], tmp_path: Path
    ) -> None:
        (tmp_path / "slow.py").write_text(SLOW.replace("sleep(2)", "sleep(60)"))
        endpoint = deploy(
            commands=[f"exec python3 {tmp_path}/slow.py"],
            probes=[{"type": "http", "url": "/"}],
            stop_duration="1s",
        )
        ended: list[str] = []

        def ask() -> None:
            try:
                get(f"{endpoint.url}/slow", timeout=60)
            except OSError as error:
                ended.append(str(error))

        request = threading.Thread(target=ask)
        request.start()
        wait_until((tmp_path / "begun").exists, 10, "the request has begun")

        stop()
        request.join(10)

        assert ended, "the request was waited for"


SLOW = """
import http.server, os, pathlib, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            (pathlib.Path(__file__).parent / "begun").touch()
            time.sleep(2)
        body = b'{"slow": true}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
