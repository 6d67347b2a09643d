"""How much memory each part takes while a service runs on this machine, idle.

A Prefect server, a worker, the controller, and a service of some replicas behind the gateway, all real. The
figures are proportional set sizes: what a page that several processes share is divided among them. From the
root of the repository:

    python -m benchmarks.footprint                # about two minutes
    python -m benchmarks.footprint --replicas 40
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from benchmarks.served import served
from prefect_dstack.hosts.ports import free_port
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

BIN = Path(sys.executable).parent
APP = Path(__file__).parents[1] / "examples" / "hello" / "app.py"
SERVICE = "footprint"
PARTS = {
    "Prefect server": "server start",
    "worker": "worker start",
    "controller": "controller run",
    "supervisor of a replica or gateway": "supervise.py",
    "gateway: HAProxy": "haproxy -W",
    "replica (examples/hello)": "hello/app.py",
}


def part_of(process: psutil.Process, home: str) -> str | None:
    """Return which part a process is; None if it is not of the home directory."""
    line = " ".join(process.cmdline())
    # HAProxy is given no home, but a path within it.
    if home not in line and process.environ().get("HOME") != home:
        return None
    return next((part for part, sign in PARTS.items() if sign in line), None)


def measured(home: str) -> dict[str, list[float]]:
    """Return the megabytes of each process, by part."""
    found: dict[str, list[float]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if part := part_of(process, home):
                found[part].append(process.memory_full_info().pss / 1e6)
    return found


def ready(server: PrefectServer, metrics: int) -> bool:
    """Return whether the worker polls and the controller leads: all that they need is loaded then."""
    with contextlib.suppress(httpx.HTTPError):
        workers = server.ask("/work_pools/dstack/workers/filter")
        leads = "prefect_dstack_controller_leads 1.0" in httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
        return leads and any(it["status"] == "ONLINE" for it in workers)
    return False


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[None]:
    """Keep a program running; a worker that is asked to end may take its time."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=10)
    replicas = parser.parse_args().replicas
    with served() as server:
        home = os.environ["HOME"]
        os.environ["PREFECT_DSTACK_METRICS_PORT"] = str(metrics := free_port())
        from prefect_dstack import deploy_service, stop_service

        commands = [f"exec python3 {APP}"]
        deploy_service(
            {"type": "service", "name": SERVICE, "port": 8000, "commands": commands, "replicas": replicas}
        )
        worker = (BIN / "prefect", "worker", "start", "--pool", "dstack", "--type", "process")
        with running(*worker), running(BIN / "prefect-dstack", "controller", "run"):
            wait_until(
                lambda: ready(server, metrics),
                600,
                "the worker polls and the controller leads",
                interval=1,
            )
            found = measured(home)
        stop_service(SERVICE)
    print("| part | processes | MB each | MB in all |\n| --- | ---: | ---: | ---: |")
    for part in PARTS:
        sizes = found[part]
        each = sum(sizes) / max(1, len(sizes))
        print(f"| {part} | {len(sizes)} | {each:.0f} | {sum(sizes):.0f} |")


if __name__ == "__main__":
    main()
