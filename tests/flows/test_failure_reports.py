"""What is known of a deployment that failed: why, what it wrote, and what it had changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret

from prefect_dstack import Endpoint
from prefect_dstack.errors import ReplicaExitedError
from prefect_dstack.services.failures import BYTES_KEPT, LINES_KEPT
from prefect_dstack.services.logs import read_logs
from tests.command_line import CommandLine
from tests.flows.conftest import HELLO
from tests.flows.seen import record_of, runs_of
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

Deploy = Callable[..., Endpoint]

TALKATIVE = """\
exec python3 -c '
import os
for number in range(3000):
    print(number, "the token is", os.environ["TOKEN"], "x" * 100)
raise SystemExit(3)
'"""


def test_what_it_wrote_is_kept_without_its_secrets_and_within_bounds(
    deploy: Deploy, name: str, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.setenv("TOKEN", "hush-hush-4711")
    with pytest.raises(ReplicaExitedError):
        deploy(commands=[TALKATIVE], env=["TOKEN"])

    kept = list(read_logs(name))
    assert kept == list(read_logs(name, revision=1)) == cli.ok("logs", name).out.splitlines()
    assert kept[-1].startswith("2999 the token is *** xxx")
    assert 100 < len(kept) <= LINES_KEPT
    assert len("\n".join(kept)) <= BYTES_KEPT
    assert "hush" not in "\n".join(kept)
    assert kept[0].split()[1:4] == ["the", "token", "is"], "lines are whole"
    assert list(read_logs(name, tail=2)) == kept[-2:]

    deploy()
    assert list(read_logs(name, revision=1)) == kept


def test_its_first_line_is_what_everything_but_the_command_line_shows(
    deploy: Deploy, name: str, cli: CommandLine, prefect_server: PrefectServer
) -> None:
    deploy()
    with pytest.raises(ReplicaExitedError) as raised:
        deploy(commands=["echo one", "echo two >&2", "exit 3"])

    reason = f"{name}-2-0: it exited with code 3 before it was ready"
    message = f"{name}@2 failed: {reason}; {name}@1 serves on"
    assert str(raised.value) == message
    assert raised.value.report.splitlines() == [message, "    one", "    two"]
    run = runs_of(prefect_server, "deploy", name)[-1]
    assert run["state"]["message"].endswith(f": {message}")
    assert record_of(prefect_server, name).revision(2).reason == reason
    assert reason in [line.strip() for line in cli.ok("history", name).out.splitlines()]

    def logged() -> str:
        logs = prefect_server.ask("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
        text = "\n".join(it["message"] for it in logs)
        return text if message in text else ""

    assert "    one\n    two" in wait_until(logged, 30, "the log of the flow run")


def test_no_task_run_of_it_is_left_unfinished(
    deploy: Deploy, name: str, prefect_server: PrefectServer
) -> None:
    broken = '[ "$DSTACK_REPLICA_NUM" != 1 ] || exit 1'
    with pytest.raises(ReplicaExitedError):
        deploy(commands=[broken, "sleep 3", HELLO], replicas=3)
    with pytest.raises(ReplicaExitedError):
        deploy(commands=["exit 1"], replicas=3)

    def states() -> list[str]:
        found: list[dict[str, Any]] = prefect_server.ask(
            "/task_runs/filter", flow_runs={"name": {"any_": [f"deploy {name}"]}}
        )
        return sorted({it["state"]["type"] for it in found})

    wait_until(lambda: states() == ["COMPLETED", "FAILED"], 30, f"all have ended, not {states()}")


def test_the_history_names_values_that_changed_and_does_not_show_them(
    deploy: Deploy, name: str, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    secret = f"{name}-secret"
    keys = {"env": {"KEY": f"${{{{ secrets.{secret} }}}}", "TOKEN": "${{ env.TOKEN }}"}}
    Secret(value="first-secret-1").save(secret)
    monkeypatch.setenv("TOKEN", "first-token-1")
    deploy(**keys)
    Secret(value="second-secret-2").save(secret, overwrite=True)
    deploy(**keys)
    monkeypatch.setenv("TOKEN", "second-token-2")
    deploy(**keys)

    told = cli.ok("history", name)
    lines = [line.strip() for line in told.out.splitlines()]
    assert lines[0].startswith(f"{name}@3")
    assert lines[1] == "~env.TOKEN: its value changed"
    assert lines[3] == "~env.KEY: its value changed"
    for text in (told.out, cli.ok("history", name, "--json").out):
        for value in ("first-secret", "second-secret", "first-token", "second-token"):
            assert value not in text


def test_what_a_python_program_prints_is_in_the_log_at_once(
    deploy: Deploy, name: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        f"print('this was printed')\nexec(compile(open({HELLO.split()[-1]!r}).read(), 'app', 'exec'))\n"
    )
    deploy(commands=[f"exec python3 {tmp_path}/app.py"])

    assert next(iter(read_logs(name))) == "this was printed"
