"""A home and a Prefect server for a benchmark, which end with it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prefect_dstack.hosts.ports import free_port
from tests.prefect_server import PrefectServer

__all__ = ["served"]


@contextlib.contextmanager
def served() -> Iterator[PrefectServer]:
    """Give this process a home and a Prefect server of its own, and yield the server."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as home:
        os.environ |= {
            "HOME": home,
            "PREFECT_HOME": f"{home}/client",
            "PREFECT_DSTACK_HOME": f"{home}/state",
            "PREFECT_DSTACK_LOCAL_GATEWAY_PORT": str(free_port()),
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }
        server = PrefectServer(Path(home) / "server")
        server.start()
        os.environ["PREFECT_API_URL"] = server.url
        try:
            yield server
        finally:
            server.stop()
