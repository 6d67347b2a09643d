"""A registry of container images on this machine, as teams run one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from prefect_dstack.hosts.ports import free_port
from tests.polling import wait_until


@contextmanager
def running_registry(directory: Path) -> Iterator[str]:
    """Run a registry, and yield its address; engines speak HTTP to one on 127.0.0.1."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no registry: install the package docker-registry")
    directory.mkdir()
    address = f"127.0.0.1:{free_port()}"
    (directory / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(directory / "config.yml")],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_until(lambda: _answers(address), 30, f"the registry at {address} answers", interval=0.2)
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/v2/", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
