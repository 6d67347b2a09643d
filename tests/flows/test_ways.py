"""One service, whichever way it is deployed: the same record, the same task runs, the same answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from prefect_dstack import Endpoint, deploy_service
from tests.command_line import CommandLine
from tests.flows.conftest import EXAMPLES, get
from tests.flows.seen import record_of, runs_of, tasks_of
from tests.home import Home
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

ROOT = EXAMPLES.parent
PREFECT = Path(sys.executable).with_name("prefect")
HELLO = "examples/hello.dstack.yml"


@pytest.fixture
def names(name: str, home: Home, prefect_server: PrefectServer) -> Iterator[list[str]]:
    """Names of services, which are stopped at the end."""
    from prefect_dstack import stop_service
    from prefect_dstack.errors import NotFoundError

    names = [f"{name}{letter}" for letter in "abc"]
    yield names
    for each in names:
        with contextlib.suppress(NotFoundError):
            stop_service(each)


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def seen(server: PrefectServer, name: str) -> tuple[dict[str, Any], list[str]]:
    """The record and the task runs of a service, without what differs from one service to another."""
    record = record_of(server, name).model_dump(mode="json")
    del record["salt"], record["asked_at"]
    for desired in [record["desired"], *record["scalings"]]:
        assert desired.pop("set_at")
    for revision in record["revisions"]:
        for key in ("workload", "settings", "created_at", "flow_run", "served_at"):
            assert revision.pop(key)
    (run,) = runs_of(server, "deploy", name)
    port = record["endpoint"]["url"].rpartition(":")[2]
    text = json.dumps([record, sorted(tasks_of(server, run))])
    found: tuple[dict[str, Any], list[str]] = tuple(
        json.loads(text.replace(name, "NAME").replace(port, "PORT"))
    )
    return found


def prefect(*arguments: str, timeout: float = 120) -> str:
    done = subprocess.run(
        [PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def worker(home: Home) -> Iterator[None]:
    """A `process` worker of the pool that `prefect.yaml` names."""
    environment = {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (home.path / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", "dstack", "--type", "process"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("in_root")
def test_the_command_line_a_worker_and_a_training_flow_do_the_same(
    cli: CommandLine, names: list[str], home: Home, prefect_server: PrefectServer
) -> None:
    @flow
    def train_and_deploy() -> Endpoint:
        return deploy_service(Path(HELLO), name=by_flow)

    by_command, by_worker, by_flow = names

    cli.ok("apply", "-f", ROOT / HELLO, "-n", by_command, "-y")
    prefect("work-pool", "create", "dstack", "--type", "process", "--overwrite")
    prefect("deploy", "--all", "--no-prompt")
    with worker(home):
        options = ["-p", f"configuration={HELLO}", "-p", f"name={by_worker}"]
        prefect("deployment", "run", "deploy-service/default", *options, "--watch", timeout=300)
    endpoint = train_and_deploy()

    assert get(endpoint.url)["revision"] == "1"
    first, *others = [seen(prefect_server, name) for name in names]
    assert first[0]["revisions"][0]["outcome"] == "active"
    assert others == [first, first]


def test_a_script_of_its_own_gets_an_endpoint(
    names: list[str], home: Home, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    (tmp_path / "deploy.py").write_text(
        "import sys\nfrom prefect_dstack import deploy_service\n"
        f"print(deploy_service({str(ROOT / HELLO)!r}, name=sys.argv[1]).url)\n"
    )

    done = subprocess.run(
        [sys.executable, "deploy.py", names[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert get(done.stdout.strip())["revision"] == "1"


def test_secrets_reach_the_process_and_are_nowhere_else(
    names: list[str],
    cli: CommandLine,
    home: Home,
    prefect_server: PrefectServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither in Prefect's database nor in any file, command line, log or output."""
    import psutil
    import yaml
    from prefect.blocks.system import Secret

    from_block, from_environment = f"hunter2-{names[0]}", f"hunter3-{names[0]}"
    Secret(value=from_block).save(f"token-{names[0]}", overwrite=True)
    file = tmp_path / "serve.dstack.yml"
    echo = 'echo "${#TOKEN} ${#FROM_DEPLOYER} ${#PREFIXED}"'
    file.write_text(
        yaml.safe_dump(
            {
                "type": "service",
                "port": 8000,
                "commands": [echo, f"exec python3 {EXAMPLES}/hello/app.py"],
                "env": {
                    "TOKEN": f"${{{{ secrets.token-{names[0]} }}}}",
                    "PREFIXED": f"Bearer ${{{{ secrets.token-{names[0]} }}}}",
                    "FROM_DEPLOYER": None,
                },
            }
        )
    )

    applied = cli.ok(
        "apply", "-f", file, "-n", names[0], "-y", environment={"FROM_DEPLOYER": from_environment}
    )
    told = [cli.ok("logs", names[0]), cli.ok("ps", "--json"), cli.ok("history", names[0], "--json"), applied]

    assert f"{len(from_block)} {len(from_environment)} {len('Bearer ' + from_block)}" in told[0].out
    written = [path for path in [*home.path.rglob("*"), *tmp_path.glob("*")] if path.is_file()]
    dumped = prefect_server.directory.glob("prefect.db*")
    lines = [" ".join(it.info["cmdline"] or ()) for it in psutil.process_iter(["cmdline"])]
    everything = {
        "output of commands": json.dumps([f"{it.out}{it.err}" for it in told]).encode(),
        "command lines": "\n".join(lines).encode(),
        **{str(path): path.read_bytes() for path in [*written, *dumped]},
    }
    for secret in (from_block, from_environment):
        assert [place for place, content in everything.items() if secret.encode() in content] == []
    capfd.readouterr()
