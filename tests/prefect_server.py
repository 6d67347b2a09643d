"""A real Prefect server for the tests, which ends with them whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from prefect_dstack.hosts.ports import free_port
from tests.polling import wait_until

PR_SET_PDEATHSIG = 1
DATABASE = "prefect.db"

# To make an empty database takes longer than to start: each after the first begins with a copy of it.
_empty: list[bytes] = []


def _dying_with_the_tests() -> Callable[[], object] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class PrefectServer:
    """A Prefect server with a database of its own.

    Args:
        directory: Holds the database and the log.
        environment: More variables for it, such as the address of another database.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.environment = dict(environment or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_with: dict[str, str] = {}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # Started again within a test, it still belongs to no test's home.
        self._started_with = self._started_with or dict(os.environ)
        environment = {name: value for name, value in self._started_with.items() if name != "PREFECT_API_URL"}
        environment |= {
            "PREFECT_HOME": str(self.directory),
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_SERVER_UI_API_URL": self.url,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            **self.environment,
        }
        if _empty and not self.database.exists():
            self.database.write_bytes(_empty[0])
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_dying_with_the_tests(),
            )
        wait_until(self._answers, 400, f"the Prefect server at {self.url} answers", interval=0.2)
        if not _empty and self.database.exists():
            with contextlib.closing(sqlite3.connect(self.database)) as database:
                _empty.append(database.serialize())

    def stop(self) -> None:
        """Stop it at once; its database stays."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def database(self) -> Path:
        """Its SQLite database; there is none if it uses another one."""
        return self.directory / DATABASE

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Let it answer nobody for a while."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.directory / "server.log"

    def ask(self, path: str, **body: Any) -> Any:
        """Ask the API, as its UI does."""
        response = httpx.post(f"{self.url}{path}", json=body, timeout=30)
        response.raise_for_status()
        return response.json()

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the Prefect server ended: {self.log.read_text()[-4000:]}")
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False
