"""Files as users of dstack write them, on hosts, from the command line to what they leave."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from prefect_dstack.flows.fleets import apply_fleet
from prefect_dstack.store.run_records import load_run
from tests.cli.test_runs import answers
from tests.command_line import CommandLine
from tests.flows.conftest import get
from tests.flows.lab import FLEET, Lab
from tests.flows.test_tasks import TALK
from tests.home import Home
from tests.polling import wait_until
from tests.testbed.host import Host

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

REGISTRY_PORT = 5000
REGISTRY = f"""
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: /var/registry}}}}
http: {{addr: ":{REGISTRY_PORT}"}}
auth: {{htpasswd: {{realm: tests, path: /var/registry.passwords}}}}
"""


@pytest.fixture
def write(lab: Lab, name: str, tmp_path: Path) -> Callable[..., Path]:
    """Writes a file for the hosts of a fleet."""
    apply_fleet(lab.fleet())

    def write(kind: str, **keys: Any) -> Path:
        file = tmp_path / f"{kind}.dstack.yml"
        common = {"type": kind, "name": name, "image": "testbed/app:1", "fleets": [FLEET]}
        file.write_text(yaml.safe_dump({**common, **keys}))
        return file

    return write


@pytest.fixture
def registry(lab: Lab) -> Iterator[Host]:
    """A host with a registry that lets in who knows the password."""
    host = lab.edge
    digest = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
    host.write_file("/var/registry.passwords", f"team:{digest}\n")
    host.write_file("/var/registry.yml", REGISTRY)
    address = f"{host.address}:{REGISTRY_PORT}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with host.popen(["docker-registry", "serve", "/var/registry.yml"], **quiet):
        with lab.hosts[0].docker() as engine:
            engine.images.get("testbed/app:1").tag(f"{address}/team/app", "1")
            credentials = {"username": "team", "password": "open sesame"}

            def push() -> bool:
                pushed = engine.images.push(f"{address}/team/app", "1", auth_config=credentials)
                return "errorDetail" not in pushed

            wait_until(push, 60, "the image is in the registry")
            engine.images.remove(f"{address}/team/app:1")
        yield host
        host.check(["pkill", "-x", "docker-registry"])
    host.check(["rm", "-rf", "/var/registry", "/var/registry.yml", "/var/registry.passwords"])


def test_a_task_answers_on_this_machine_until_it_is_interrupted(
    cli: CommandLine, write: Callable[..., Path], lab: Lab, name: str, home: Home
) -> None:
    file = write("task", commands=["exec python3 /app/app.py 8000"], ports=[f"{home.port}:8000"])
    with cli.start("apply", "-f", file, "-y") as applying:
        wait_until(lambda: answers(home.port), 120, "the port answers")
        applying.send_signal(signal.SIGINT)
        out, err = applying.communicate(timeout=60)
    assert applying.returncode == 130
    assert "Traceback" not in out + err
    assert not answers(home.port)
    assert load_run(name).state == "stopped"
    assert not any(host.check(["docker", "ps", "-aq"]) for host in lab.hosts)


def test_groups_of_nodes_on_hosts_that_talk(
    cli: CommandLine, write: Callable[..., Path], lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    file = write(
        "task",
        files=["talk.py:/talk.py"],
        env={"TALK_PORT": "7777"},
        groups=[
            {"name": "head", "commands": ["python3 /talk.py"]},
            {
                "name": "worker",
                "nodes": 2,
                "commands": [
                    "test $DSTACK_MASTER_NODE_IP = ${{ groups[0].nodes[0].IP_ADDRESS }}",
                    "if [ $DSTACK_NODE_RANK = 2 ]; then python3 /talk.py; fi",
                ],
            },
        ],
    )
    told = cli.ok("apply", "-f", file, "-y").out
    assert "heard rank 2" in told
    assert not any(host.check(["docker", "ps", "-aq"]) for host in lab.hosts)


def test_the_image_of_a_private_registry_with_credentials_of_the_environment(
    cli: CommandLine,
    write: Callable[..., Path],
    lab: Lab,
    registry: Host,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(
        "service",
        image=f"{registry.address}:{REGISTRY_PORT}/team/app:1",
        port=8000,
        env=["REGISTRY_USER", "REGISTRY_PASSWORD"],
        registry_auth={"username": "${{ env.REGISTRY_USER }}", "password": "${{ env.REGISTRY_PASSWORD }}"},
        probes=[{"type": "http", "url": "/health", "interval": "1s"}],
    )
    monkeypatch.setenv("REGISTRY_USER", "team")
    monkeypatch.setenv("REGISTRY_PASSWORD", "wrong")
    refused = cli("apply", "-f", file, "-y")
    assert refused.code != 0
    assert "wrong" not in refused.out + refused.err

    monkeypatch.setenv("REGISTRY_PASSWORD", "open sesame")
    cli.ok("apply", "-f", file, "-y")
    assert get(cli.ok("url", name).out.strip())["service"]
    for host in lab.hosts:
        assert "open sesame" not in host.check(["sh", "-c", "docker ps -aq | xargs -r docker inspect"])
    cli.ok("stop", name, "-y")
    for host in lab.hosts:
        host.exec(["docker", "rmi", f"{registry.address}:{REGISTRY_PORT}/team/app:1"])
