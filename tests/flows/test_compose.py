"""What `deploy/compose.yml` starts, started as plain processes.

Not tested here, as no registry of images is at hand: that the image builds, and that the containers find each
other by name and may write to their volumes. Hosts over SSH are tested by `test_ssh_services.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import prefect.settings
import psutil
import pytest
import yaml
from prefect_redis.client import RedisMessagingSettings

from prefect_dstack.hosts.ports import free_port
from prefect_dstack.settings import Settings
from tests.flows.conftest import get
from tests.flows.postgres import postgres
from tests.flows.test_documented import BIN, ROOT
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

FILE = ROOT / "deploy" / "compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
OURS = {name: it for name, it in SERVICES.items() if it["image"] == "prefect-dstack"}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()

Environment = Mapping[str, str]


def test_compose_accepts_the_file() -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("no docker-compose on the PATH: apt-get install docker-compose")
    check = [program, "--file", str(FILE), "config", "--quiet"]
    environment = {**os.environ, "POSTGRES_PASSWORD": "secret"}

    subprocess.run(check, env=environment, check=True, timeout=60)
    without = subprocess.run(
        check, env={**environment, "POSTGRES_PASSWORD": ""}, capture_output=True, text=True, check=False
    )

    assert "set it in deploy/.env" in without.stderr


@pytest.mark.parametrize("name", sorted({key for it in OURS.values() for key in it["environment"]}))
def test_every_variable_is_a_setting(name: str) -> None:
    redis, ours = "PREFECT_REDIS_MESSAGING_", "PREFECT_DSTACK_"
    if name.startswith(redis):
        assert name.removeprefix(redis).lower() in RedisMessagingSettings.model_fields
    elif name.startswith(ours):
        assert name.removeprefix(ours).lower() in Settings.model_fields
    else:
        assert hasattr(prefect.settings, name)


def test_every_module_and_directory_that_it_names_is_there() -> None:
    for module in re.findall(r"prefect_redis\.\w+", FILE.read_text()):
        assert importlib.import_module(module)
    sources = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert sources
    for path in " ".join(sources).split():
        assert (ROOT / path).exists()
    for service in OURS.values():
        for volume in service.get("volumes", []):
            _, place, *_ = re.sub(r"\$\{[^}]*\}", "", volume).split(":")
            assert place.endswith("/.ssh") or f"{place} " in DOCKERFILE.replace("\n", " ")


class Stack:
    """The processes of the file.

    Args:
        server: The Prefect server.
        environment: Of what else is started.
        logs: Where its output goes.
    """

    def __init__(self, server: PrefectServer, environment: Environment, logs: Path) -> None:
        self.server = server
        self.metrics = free_port()
        self._environment = environment
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, service: str, **settings: str) -> None:
        """Start what the file starts under a name, perhaps with other settings than its own."""
        program, *arguments = SERVICES[service]["command"]
        environment = {
            **os.environ,
            **SERVICES[service]["environment"],
            "PREFECT_API_URL": self.server.url,
            "PREFECT_DSTACK_METRICS_ADDRESS": "127.0.0.1",
            **({"PREFECT_DSTACK_METRICS_PORT": str(self.metrics)} if service == "controller" else {}),
            **self._environment,
            **settings,
        }
        with (self._logs / f"{service}.log").open("wb") as log:
            self._running[service] = subprocess.Popen(
                [BIN / program, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, service: str) -> None:
        """Kill it, and the flow runs that it has begun."""
        process = self._running.pop(service)
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(process.pid).children(recursive=True):
                # Replicas, gateways and their supervisors stay.
                if "prefect.engine" in " ".join(each.cmdline()):
                    each.kill()
        process.kill()
        process.wait()

    def end(self) -> None:
        """Kill all of them."""
        for service in list(self._running):
            self.kill(service)

    def begin(self, flow: str, **parameters: Any) -> str:
        """Have a deployment run, and return the id of the flow run."""
        (found,) = self.server.ask("/deployments/filter", flows={"name": {"any_": [flow]}})
        path = f"/deployments/{found['id']}/create_flow_run"
        return str(self.server.ask(path, parameters=parameters, state={"type": "SCHEDULED"})["id"])

    def state(self, run: str) -> dict[str, Any]:
        """The state of a flow run."""
        (found,) = self.server.ask("/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return dict(found["state"])

    def run(self, flow: str, *, ends: str = "Completed", **parameters: Any) -> str:
        """Run a deployment until it has ended as it should, and return the id of the flow run."""
        run = self.begin(flow, **parameters)
        over = ("COMPLETED", "FAILED", "CRASHED", "PAUSED")
        wait_until(lambda: self.state(run)["type"] in over, 400, f"{flow} has ended", interval=1)
        state = self.state(run)
        assert state["name"] == ends, state["message"]
        return run


@pytest.fixture
def redis() -> Iterator[int]:
    """The port of a Redis."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the PATH: apt-get install redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-redis-") as directory:
        assert SERVICES["redis"]["command"][0] == "redis-server"
        options = [*SERVICES["redis"]["command"][1:], "--port", str(port), "--bind", "127.0.0.1"]
        process = subprocess.Popen([program, *options, "--dir", directory], stdout=subprocess.DEVNULL)
        yield port
        process.terminate()
        process.wait()


@pytest.fixture
def stack(redis: int, home: Home) -> Iterator[Stack]:
    """The server of the file on a PostgreSQL and a Redis, and what else it starts."""
    service = SERVICES["server"]
    assert service["command"][:3] == ["prefect", "server", "start"]
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-compose-") as text:
        directory = Path(text)
        directory.chmod(0o755)
        for address in postgres(directory / "postgres"):
            written = service["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
            assert written.split("://")[0] == address.split("://")[0]
            here = {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": address,
                "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
                "PREFECT_REDIS_MESSAGING_PORT": str(redis),
            }
            server = PrefectServer(directory / "server", {**service["environment"], **here})
            server.start()
            stack = Stack(server, {"PREFECT_WORKER_QUERY_SECONDS": "2"}, home.path)
            yield stack
            stack.end()
            server.stop()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_worker_goes_on_where_another_was_lost(
    stack: Stack, redis: int, home: Home, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", stack.server.url)
    for command in (
        ["work-pool", "create", "dstack", "--type", "process"],
        ["--no-prompt", "deploy", "--all"],
    ):
        subprocess.run([BIN / "prefect", *command], cwd=ROOT, check=True, capture_output=True, timeout=400)
    stack.start("worker-1")
    stack.run("deploy-service", configuration="examples/hello.dstack.yml", name=name)
    url = f"http://127.0.0.1:{home.port}"
    assert get(url)["revision"] == "1"

    stack.kill("worker-1")
    stack.start("worker-2")
    stack.start("controller")
    stack.run("deploy-service", configuration="examples/hello.dstack.yml", name=name, force=True)
    assert get(url)["revision"] == "2"
    wait_until(leads(stack.metrics), 200, "the controller leads", interval=1)
    stack.run("stop-service", name=name)

    keys = subprocess.check_output(["redis-cli", "-p", str(redis), "dbsize"], text=True)
    assert int(keys) > 0, "the server keeps nothing in Redis"


def leads(port: int) -> Callable[[], bool]:
    """Whether the controller that publishes its metrics on a port leads."""

    def asked() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return "prefect_dstack_controller_leads 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        return False

    return asked
