"""Schedules fire with the Prefect that is installed: its server plans the runs, its worker does them."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.command_line import CommandLine
from tests.flows.conftest import hello
from tests.home import Home
from tests.polling import wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PREFECT = Path(sys.executable).with_name("prefect")
# A sixth field of a cron is its seconds.
SCHEDULES: dict[str, dict[str, Any]] = {
    "by-cron": {"cron": "* * * * * */10"},
    "by-interval": {"interval": 10},
}


@pytest.fixture
def api(cli: CommandLine, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API of a local server, as `prefect-dstack server start` makes it."""
    monkeypatch.setenv("PREFECT_HOME", str(home.path / ".prefect"))
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(home.port))
    monkeypatch.delenv("PREFECT_API_URL")
    url = cli.ok("server", "start", timeout=200).out.strip()
    yield url
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    cli.ok("server", "stop")


@pytest.fixture
def first_port_in_use(home: Home) -> Iterator[None]:
    """Somebody else listens where a local server would."""
    with socket.create_server(("127.0.0.1", home.port)):
        yield


def test_the_ui_asks_its_own_server_on_whatever_port(first_port_in_use: None, api: str, home: Home) -> None:
    assert f":{home.port}/" not in api

    assert httpx.get(f"{api.removesuffix('/api')}/ui-settings").json()["api_url"] == api


@pytest.fixture
def worker(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A worker of the pool `dstack`; gives its log."""
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    log = tmp_path / "worker.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", "dstack", "--type", "process"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        yield log
        # Runs that it has just begun are in sessions of their own.
        its = psutil.Process(process.pid)
        for each in [*its.children(recursive=True), its]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def prefect(*arguments: str) -> None:
    done = subprocess.run(
        [PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def deploy(tmp_path: Path) -> None:
    """Deploy a shipped flow once with each kind of schedule."""
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (shipped,) = [it for it in project["deployments"] if "reconcile_services" in it["entrypoint"]]
    project["deployments"] = [
        {**shipped, "name": name, "parameters": {"dry_run": True}, "schedules": [schedule]}
        for name, schedule in SCHEDULES.items()
    ]
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump(project))
    prefect("work-pool", "create", "dstack", "--type", "process", "--overwrite")
    prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(file))


@pytest.mark.timeout(300)
def test_a_cron_and_an_interval_fire_twice(api: str, worker: Path, cli: CommandLine, tmp_path: Path) -> None:
    deploy(tmp_path)

    def ended() -> dict[str, set[str]]:
        """The times for which runs were planned that have ended well, by deployment."""
        body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}}
        times = defaultdict(set)
        for run in httpx.post(f"{api}/flow_runs/filter", json=body, timeout=30).json():
            assert run["state_type"] == "COMPLETED", (run["state"]["message"], worker.read_text()[-4000:])
            assert run["auto_scheduled"]
            times[run["deployment_id"]].add(run["expected_start_time"])
        return times

    wait_until(
        lambda: len(ended()) == len(SCHEDULES) and all(len(times) >= 2 for times in ended().values()),
        150,
        f"each schedule has fired twice; {worker}",
        interval=0.5,
    )
    wait_until(
        lambda: "ok       the scheduler of the Prefect API: 2 of 2 deployments" in cli.ok("doctor").out,
        30,
        "doctor finds that runs are planned",
    )


@pytest.mark.timeout(300)
def test_the_schedule_of_a_file_starts_its_task(
    api: str, worker: Path, cli: CommandLine, tmp_path: Path
) -> None:
    times = tmp_path / "times"
    file = tmp_path / "count.dstack.yml"
    task = {"type": "task", "name": "count", "commands": [f"date >> {times}"]}
    file.write_text(yaml.safe_dump({**task, "schedule": {"cron": ["* * * * *", "0 8 * * 0"]}}))

    shown = cli.ok("apply", file, "-y").out
    assert "count starts on the schedule '* * * * *' and '0 8 * * mon' (UTC), by run-task/count" in shown
    assert not times.exists()
    assert "* * * * * and 0 8 * * mon" in cli.ok("ps").out

    other = tmp_path / "other.dstack.yml"
    schedule = {"cron": "0 9 * * *"}
    other.write_text(yaml.safe_dump({**hello("count"), "schedule": schedule}))
    refused = cli("apply", other, "-y")
    assert refused.code == 2
    assert "count: a task of that name is on a schedule" in refused.err

    wait_until(times.exists, 150, f"the schedule has started it; {worker}")
    wait_until(lambda: json.loads(cli.ok("ps", "--json", "-a").out)[0]["state"] == "done", 60, "it is done")
    cli.ok("stop", "count", "-y")
    assert "* * * * *" not in cli.ok("ps", "-a").out
    cli.ok("apply", file, "-y")
    file.write_text(yaml.safe_dump(task))
    assert "count: is no longer on a schedule" in cli.ok("apply", file, "-y").err
    assert "* * * * *" not in cli.ok("ps", "-a").out
    cli.ok("delete", "count", "-y")
