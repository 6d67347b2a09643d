"""Services without an image: processes with their own Python here, the default image elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack import Endpoint, deploy_service, run_task, stop_service
from prefect_dstack.flows.fleets import apply_fleet
from tests.flows.conftest import get
from tests.flows.lab import Lab
from tests.home import Home
from tests.prefect_server import PrefectServer
from tests.testbed.engine import LocalEngine
from tests.testbed.images import load_image

pytestmark = pytest.mark.integration

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
APP = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = {"prefix": sys.prefix, "version": list(sys.version_info[:2]), "path": os.environ["PATH"]}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


def service(name: str, **keys: Any) -> dict[str, Any]:
    probes = [{"type": "http", "url": "/", "interval": "1s"}]
    commands = [f"exec python -c '{APP}'"]
    return {"type": "service", "name": name, "port": 8000, "commands": commands, "probes": probes, **keys}


def test_on_this_machine_each_revision_has_an_environment_of_its_own(
    deploy: Callable[..., Endpoint], home: Home, name: str
) -> None:
    first = get(deploy(service(name, python=HERE)).url)
    assert first["prefix"] == str(home.state / "replicas" / f"{name}-1-0" / "venv")
    assert first["version"] == list(sys.version_info[:2])
    assert first["path"].startswith(f"{first['prefix']}/bin:")

    second = get(deploy(service(name, python=HERE, env={"A": "b"})).url)
    assert second["prefix"] == str(home.state / "replicas" / f"{name}-2-0" / "venv")
    assert not Path(first["prefix"]).exists()


@pytest.fixture
def default_image(docker_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image that stands in for the default one, on the Docker Engine of this machine."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    tag = load_image(docker_engine, "uv")
    monkeypatch.setenv("PREFECT_DSTACK_DEFAULT_IMAGE", tag)
    return tag


@pytest.mark.docker
def test_elsewhere_it_is_a_container_of_the_default_image(
    deploy: Callable[..., Endpoint], docker_engine: LocalEngine, default_image: str, name: str
) -> None:
    # Machines beside this one may be used, even if there are none today.
    endpoint = deploy(service(name, python=HERE, backends=["local", "ssh"]))

    answer = get(endpoint.url)
    assert answer["prefix"] == f"/tmp/prefect-dstack-venv-{name}-1-0"
    assert answer["version"] == list(sys.version_info[:2])
    with docker_engine.docker() as client:
        (container,) = client.containers.list(filters={"label": f"prefect-dstack.service={name}"})
        assert container.attrs["Config"]["Image"] == default_image
    assert not deploy(service(name, python=HERE, backends=["local", "ssh"])).changed


def test_a_task_has_one_too(home: Home, prefect_server: PrefectServer, name: str, tmp_path: Path) -> None:
    told = "import sys; print(sys.prefix); sys.exit(sys.prefix == sys.base_prefix)"
    task = {"type": "task", "name": name, "python": HERE, "commands": [f"python -c '{told}' > prefix"]}

    result = run_task(task, artifacts={"prefix": str(tmp_path / "prefix")})

    assert result.exit_code == 0
    assert (tmp_path / "prefix").read_text().strip() == str(home.state / "replicas" / f"{name}-1-0" / "venv")


@pytest.mark.testbed
def test_on_a_host_of_a_fleet(lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    host = lab.hosts[0]
    monkeypatch.setenv("PREFECT_DSTACK_DEFAULT_IMAGE", load_image(host, "uv"))
    apply_fleet(lab.fleet(host))
    (tmp_path / "app.py").write_text(APP)
    keys = {"commands": ["pip list || true", "exec python app.py"], "files": [f"{tmp_path}/app.py:app.py"]}

    endpoint = deploy_service(service(name, python=HERE, fleets=["lab"], **keys))

    assert get(endpoint.url)["prefix"] == f"/tmp/prefect-dstack-venv-{name}-1-0"
    stop_service(name)
