"""How long a deployment takes, beside a bare script that does the least that must be done.

Both start the same process, wait for its port, put it behind an HAProxy that runs already, and ask it through
that until it answers 200: the script by HAProxy's runtime API, `deploy_service` as a flow of a Prefect server
that runs already. Each round they take turns; afterwards comes where the time of the flow went, task by task,
as the Prefect API has recorded it. From the root of the repository:

    python -m benchmarks.deploy_latency                # about two minutes
    python -m benchmarks.deploy_latency --rounds 20
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect_dstack.gateways.local import haproxy_binary
from prefect_dstack.hosts.ports import free_port
from tests.prefect_server import PrefectServer

APP = Path(__file__).parents[1] / "examples" / "hello" / "app.py"
SERVICE = "latency"
POLL = 0.01


def answered(url: str) -> None:
    """Ask until there is an answer of 200."""
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(POLL)


class Bare:
    """HAProxy with one backend, and a script that puts processes behind it.

    Args:
        directory: For its configuration and socket.
    """

    def __init__(self, directory: Path) -> None:
        self.port, self.socket = free_port(), directory / "haproxy.sock"
        configuration = directory / "haproxy.cfg"
        configuration.write_text(
            f"global\n  stats socket {self.socket} level admin\n"
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"frontend web\n  bind 127.0.0.1:{self.port}\n  default_backend app\nbackend app\n"
        )
        self.haproxy = subprocess.Popen([haproxy_binary(), "-db", "-f", configuration])
        while not self.socket.exists():
            time.sleep(POLL)

    def tell(self, command: str) -> None:
        """Send a command to the runtime API."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(f"{command}\n".encode())
            while connection.recv(4096):
                pass

    def deploy(self) -> float:
        """Start a process behind HAProxy, and stop it again.

        Returns:
            Seconds from the beginning to the first 200.
        """
        began = time.monotonic()
        port = free_port()
        environment = {**os.environ, "PORT": str(port)}
        process = subprocess.Popen(
            ["bash", "-c", f"exec python3 {APP}"], env=environment, stdout=subprocess.DEVNULL
        )
        answered(f"http://127.0.0.1:{port}/health")
        self.tell(f"add server app/one 127.0.0.1:{port}")
        self.tell("enable server app/one")
        answered(f"http://127.0.0.1:{self.port}/")
        seconds = time.monotonic() - began
        self.tell("set server app/one state maint")
        self.tell("del server app/one")
        process.terminate()
        process.wait()
        return seconds

    def stop(self) -> None:
        """Stop HAProxy."""
        self.haproxy.terminate()
        self.haproxy.wait()


def deploy_flow() -> float:
    """Deploy a service by the flow, and stop it again.

    Returns:
        Seconds from the call to the first 200 through the gateway.
    """
    from prefect_dstack import deploy_service, stop_service

    began = time.monotonic()
    endpoint = deploy_service(
        {
            "type": "service",
            "name": SERVICE,
            "port": 8000,
            "commands": [f"exec python3 {APP}"],
            "probes": [{"type": "http", "url": "/health", "interval": "1s"}],
        }
    )
    answered(endpoint.url)
    seconds = time.monotonic() - began
    stop_service(SERVICE)
    return seconds


@contextlib.contextmanager
def kept_gateway() -> Iterator[None]:
    """Keep another service running, and with it the gateway of this machine."""
    from prefect_dstack import deploy_service, stop_service

    commands = [f"exec python3 {APP}"]
    deploy_service({"type": "service", "name": "other", "port": 8000, "commands": commands})
    yield
    stop_service("other")


def seconds_of(run: dict[str, Any]) -> tuple[float, float]:
    """When a run began and ended, as Unix time."""
    ends = (run["start_time"], run["end_time"])
    began, ended = (datetime.fromisoformat(it).timestamp() for it in ends)
    return began, ended


def task_by_task(server: PrefectServer) -> dict[str, list[float]]:
    """Where the time of the deployments went.

    Args:
        server: The Prefect server.

    Returns:
        Seconds by task, and those between the tasks.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    runs = server.ask("/flow_runs/filter", flow_runs={"name": {"any_": [f"deploy {SERVICE}"]}})
    for run in runs:
        began, ended = seconds_of(run)
        tasks = server.ask("/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        covered, last = 0.0, began
        for task in sorted(tasks, key=lambda task: task["start_time"]):
            start, end = seconds_of(task)
            spent[task["name"].split()[0]].append(end - start)
            covered += max(0.0, end - max(start, last))
            last = max(last, end)
        spent["(between the tasks)"].append(ended - began - covered)
        spent["(the whole flow run)"].append(ended - began)
    return spent


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="deploy-latency-") as directory:
        place = Path(directory)
        os.environ |= {
            "PREFECT_HOME": str(place / "client"),
            "PREFECT_DSTACK_HOME": str(place / "state"),
            "PREFECT_DSTACK_LOCAL_GATEWAY_PORT": str(free_port()),
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }
        server, bare = PrefectServer(place / "server"), Bare(place)
        try:
            server.start()
            os.environ["PREFECT_API_URL"] = server.url
            ours, theirs = [], []
            with kept_gateway():
                for number in range(rounds + 1):
                    theirs.append(bare.deploy())
                    ours.append(deploy_flow())
                    print(
                        f"round {number}: script {theirs[-1]:.2f} s, flow {ours[-1]:.2f} s", file=sys.stderr
                    )
            print(table(ours[1:], theirs[1:], task_by_task(server)))
        finally:
            bare.stop()
            server.stop()


def table(ours: list[float], theirs: list[float], spent: dict[str, list[float]]) -> str:
    """Write the results.

    Args:
        ours: Seconds of the flow, round by round; the first round is left out, which warms up.
        theirs: Seconds of the script.
        spent: Seconds by task.

    Returns:
        Two tables of Markdown.
    """
    lines = ["| | median | least | most |", "| --- | --- | --- | --- |"]
    for name, seconds in (("bare script", theirs), ("deploy_service", ours)):
        low, high = min(seconds), max(seconds)
        lines.append(f"| {name} | {statistics.median(seconds):.2f} s | {low:.2f} s | {high:.2f} s |")
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    lines += [f"\nmedian difference {statistics.median(differences):.2f} s, ratio {ratio:.1f}\n"]
    lines += ["| where the flow's time goes | median |", "| --- | --- |"]
    lines += [f"| {name} | {statistics.median(seconds):.2f} s |" for name, seconds in spent.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
