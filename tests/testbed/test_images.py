"""The images are what they stand in for, on a Docker Engine of this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.polling import wait_until
from tests.testbed.conftest import get, get_when_ready
from tests.testbed.engine import LocalEngine
from tests.testbed.images import image_archive, load_image

pytestmark = pytest.mark.docker

# The SDK takes a tuple without a port for "any port", which its type hints do not know.
PUBLISHED: Any = {"8000/tcp": ("127.0.0.1", None)}
RESTARTED: Any = {"Name": "unless-stopped"}

HAPROXY = """\
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend web
    bind :8000
    http-request return status 200 content-type application/json string '{"by":"haproxy"}'
"""


def published(engine: LocalEngine, name: str | None) -> int:
    assert name
    with engine.docker() as client:
        bindings = client.containers.get(name).attrs["NetworkSettings"]["Ports"]["8000/tcp"]
    assert bindings[0]["HostIp"] == "127.0.0.1"
    return int(bindings[0]["HostPort"])


def test_archives_are_made_once() -> None:
    archive = image_archive("busybox")
    written = archive.stat().st_mtime_ns
    assert image_archive("busybox") == archive
    assert archive.stat().st_mtime_ns == written


def test_python_runs_scripts_and_its_http_server_as_any_user(docker_engine: LocalEngine) -> None:
    tag = load_image(docker_engine, "python", tags=["registry.example/python:3-slim"])
    script = "import ssl, sqlite3, ctypes, asyncio, json; print(json.dumps(asyncio.run(asyncio.sleep(0, 1))))"
    with docker_engine.docker() as client:
        output = client.containers.run(tag, ["python", "-c", script], user="1000", remove=True)
        assert output == b"1\n"
        server = client.containers.run(
            "registry.example/python:3-slim",
            ["/bin/sh", "-c", "echo '{\"a\": 1}' >/tmp/index.html && python -m http.server -d /tmp 8000"],
            detach=True,
            ports=PUBLISHED,
        )
        try:
            assert get_when_ready("127.0.0.1", published(docker_engine, server.id)) == {"a": 1}
        finally:
            server.remove(force=True)


def test_a_killed_container_is_restarted_by_its_policy(docker_engine: LocalEngine) -> None:
    load_image(docker_engine, "app")
    with docker_engine.docker() as client:
        app = client.containers.run(
            "testbed/app:1",
            detach=True,
            ports=PUBLISHED,
            environment={"VERSION": "7"},
            restart_policy=RESTARTED,
            mem_limit="64m",
        )
        try:
            port = published(docker_engine, app.id)
            assert get_when_ready("127.0.0.1", port)["version"] == "7"
            docker_engine.kill_container(str(app.id))

            def restarted() -> bool:
                app.reload()
                return bool(app.attrs["RestartCount"] == 1 and app.status == "running")

            wait_until(restarted, 10, "the container is restarted")
            assert get_when_ready("127.0.0.1", published(docker_engine, app.id))["version"] == "7"
            started = time.monotonic()
            app.stop(timeout=20)
            assert time.monotonic() - started < 15
            assert app.wait(timeout=5)["StatusCode"] == 0
        finally:
            app.remove(force=True)


def test_haproxy_behaves_as_the_official_image(docker_engine: LocalEngine, tmp_path: Path) -> None:
    load_image(docker_engine, "haproxy")
    (tmp_path / "haproxy.cfg").write_text(HAPROXY)
    tmp_path.chmod(0o755)
    with docker_engine.docker() as client:
        version = client.containers.run("haproxy:2.8", ["-v"], remove=True)
        assert version.startswith(b"HAProxy version 2.8.")
        assert client.containers.run("haproxy:2.8", ["id", "-u"], remove=True) == b"99\n"
        haproxy = client.containers.run(
            "haproxy:2.8",
            detach=True,
            volumes={str(tmp_path): {"bind": "/usr/local/etc/haproxy", "mode": "ro"}},
            ports=PUBLISHED,
        )
        try:
            assert get_when_ready("127.0.0.1", published(docker_engine, haproxy.id)) == {"by": "haproxy"}
            processes = haproxy.top(ps_args="-o pid,args")["Processes"]
            assert processes[0][1].startswith("haproxy -W -db -f /usr/local/etc/haproxy/")
            assert len(processes) == 2
            port = published(docker_engine, haproxy.id)
            haproxy.kill("SIGUSR2")  # reloads
            wait_until(lambda: haproxy.logs().count(b"Loading success") == 2, 10, "HAProxy has reloaded")
            assert get("127.0.0.1", port) == {"by": "haproxy"}
            haproxy.stop(timeout=20)
            assert haproxy.wait(timeout=5)["StatusCode"] == 0
        finally:
            haproxy.remove(force=True)
