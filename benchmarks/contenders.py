"""What is compared: a service of prefect-dstack, and a rolling script over nginx as one would write it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from prefect_dstack.hosts.ports import free_port
from tests.testbed.engine import LocalEngine

APP = Path(__file__).parents[1] / "tests" / "testbed" / "app.py"
IMAGE = "testbed/app:1"
READY_TIMEOUT = 30.0
# What `docker stop` and most process managers give a program between SIGTERM and SIGKILL.
GRACE = 10.0


class Contender(Protocol):
    """A service behind a proxy."""

    name: str
    port: int
    version: int

    def redeploy(self) -> None:
        """Put the next version in the place of the present one."""
        ...

    def stop(self) -> None:
        """Take it down."""
        ...


class PrefectDstack:
    """The flow `deploy_service`, called again and again.

    Args:
        runtime: `process` or `docker`.
    """

    name = "prefect-dstack"

    def __init__(self, runtime: str, program: list[str]) -> None:
        self.version = 0
        self.service = f"benchmark-{runtime}"
        self.what = {"image": IMAGE} if runtime == "docker" else {"commands": [f"exec {shlex.join(program)}"]}
        self.redeploy()

    def redeploy(self) -> None:
        """Deploy it, with another environment."""
        from prefect_dstack import deploy_service

        self.version += 1
        configuration = {
            "type": "service",
            "name": self.service,
            "port": 8000,
            "env": {"VERSION": str(self.version)},
            "probes": [{"type": "http", "url": "/health", "interval": "1s"}],
            **self.what,
        }
        endpoint = deploy_service(configuration)
        self.port = urlsplit(endpoint.url).port or 80

    def stop(self) -> None:
        """Take it off the air."""
        from prefect_dstack import stop_service

        stop_service(self.service)


class Nginx:
    """Start the new version, wait until it answers, reload nginx with it, stop the old one.

    Args:
        runtime: `process` or `docker`.
        directory: For its configuration.
        program: The command of a replica that is a process.
        engine: For containers.
    """

    name = "script over nginx"

    def __init__(self, runtime: str, directory: Path, program: list[str], engine: LocalEngine | None) -> None:
        self.version = 0
        self.directory = directory
        self.program = program
        self.port = free_port()
        self._launch = self._container if runtime == "docker" else self._process
        self._engine = engine
        self._nginx: subprocess.Popen[bytes] | None = None
        self._stop_present: Callable[[], None] = lambda: None
        self.redeploy()

    def redeploy(self) -> None:
        """Do what the script does."""
        self.version += 1
        port, stop = self._launch(free_port())
        _wait_until_ready(port)
        self._write(port)
        if self._nginx is None:
            self._nginx = subprocess.Popen([*self._command(), "-g", "daemon off;"])
            _wait_until_ready(self.port)
        else:
            subprocess.run([*self._command(), "-s", "reload"], check=True)
            time.sleep(1)  # until its workers have changed over
        self._stop_present()
        self._stop_present = stop

    def stop(self) -> None:
        """Take all of it down."""
        self._stop_present()
        if self._nginx is not None:
            self._nginx.terminate()
            self._nginx.wait()

    def _command(self) -> list[str]:
        return ["nginx", "-p", str(self.directory), "-c", "nginx.conf", "-e", "error.log"]

    def _process(self, port: int) -> tuple[int, Callable[[], None]]:
        process = subprocess.Popen(
            self.program,
            env={**os.environ, "PORT": str(port), "VERSION": str(self.version)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def stop() -> None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        return port, stop

    def _container(self, port: int) -> tuple[int, Callable[[], None]]:
        assert self._engine is not None
        with self._engine.docker() as client:
            container = client.containers.run(
                IMAGE,
                detach=True,
                init=True,
                ports={"8000/tcp": ("127.0.0.1", port)},
                environment={"VERSION": str(self.version)},
            )
        name = str(container.id)

        def stop() -> None:
            assert self._engine is not None
            with self._engine.docker() as client:
                old = client.containers.get(name)
                old.stop(timeout=round(GRACE))
                old.remove()

        return port, stop

    def _write(self, port: int) -> None:
        (self.directory / "nginx.conf").write_text(
            f"""
            worker_processes 2;
            pid nginx.pid;
            events {{ worker_connections 1024; }}
            http {{
                access_log off;
                map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
                upstream service {{ server 127.0.0.1:{port}; keepalive 32; }}
                server {{
                    listen 127.0.0.1:{self.port};
                    location / {{
                        proxy_pass http://service;
                        proxy_http_version 1.1;
                        proxy_set_header Host $host;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection $connection_upgrade;
                        proxy_buffering off;
                        proxy_read_timeout 1h;
                        client_max_body_size 64m;
                    }}
                }}
            }}
            """
        )


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def contenders(
    runtime: str, directory: Path, cpus: set[int], engine: LocalEngine | None
) -> Iterator[list[Contender]]:
    """Start both, and take them down at the end.

    Args:
        runtime: `process` or `docker`.
        directory: For their files.
        cpus: Where replicas that are processes run.
        engine: For containers.
    """
    program = ["taskset", "-c", ",".join(map(str, sorted(cpus))), sys.executable, str(APP)]
    with contextlib.ExitStack() as stack:
        started: list[Contender] = []
        for make in (
            lambda: PrefectDstack(runtime, program),
            lambda: Nginx(runtime, directory, program, engine),
        ):
            contender: Contender = make()
            stack.callback(contender.stop)
            started.append(contender)
        yield started
