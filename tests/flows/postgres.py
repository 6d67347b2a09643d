"""A PostgreSQL of a test's own, from Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dstack.hosts.ports import free_port

DEBIAN = Path("/usr/lib/postgresql")
USER = "postgres"


def programs() -> Path | None:
    """Where the programs of the newest server are; None if there is none."""
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


def postgres(directory: Path) -> Iterator[str]:
    """Run a server, and give its address as Prefect takes it; it is stopped at the end.

    Args:
        directory: Holds its data; everybody may enter the directories above.
    """
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL below /usr/lib/postgresql: apt-get install postgresql")
    if os.getuid() != 0:
        pytest.skip("only root can start a PostgreSQL as user postgres")
    directory.mkdir()
    shutil.chown(directory, USER)
    port, data = free_port(), directory / "data"

    def run(*command: str | Path) -> None:
        subprocess.run(
            ["runuser", "-u", USER, "--", *map(str, command)],
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    run(found / "initdb", "-D", data, "-A", "trust", "-U", USER, "--no-sync")
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
    control = found / "pg_ctl"
    run(control, "-D", data, "-l", directory / "log", "-o", options, "-w", "start")
    try:
        run(found / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, "prefect")
        yield f"postgresql+asyncpg://{USER}@127.0.0.1:{port}/prefect"
    finally:
        run(control, "-D", data, "-m", "immediate", "-w", "stop")
