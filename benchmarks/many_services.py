"""What many services cost when nothing happens: the controller, a full pass over all of them, and memory.

Services of one small replica each (busybox's web server) behind the gateway of this machine, with a Prefect
server and a controller, all real. They are deployed by the same code as ever, but as plain calls: a flow run
for each of a thousand would take an hour. From the root of the repository:

    python -m benchmarks.many_services                  # 10, 100 and 1,000 services, half an hour, 12 GB
    python -m benchmarks.many_services 10 100 --minutes 2
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.served import served

if TYPE_CHECKING:
    from prefect_dstack.gateways.state import GatewayState, Route
    from prefect_dstack.infrastructure.infrastructure import Infrastructure
    from prefect_dstack.services.preparation import PreparedService

logger = logging.getLogger(__name__)

CONTROLLER = (str(Path(sys.executable).parent / "prefect-dstack"), "controller", "run")
# The first look at everything is no idle one.
SETTLING = 100.0
PARALLEL = 8


@dataclass(frozen=True)
class Figures:
    """What a number of services costs.

    Attributes:
        services: How many there are.
        cpu: The share of one core that the controller takes.
        server: The share of one core that the Prefect server takes.
        pass_seconds: How long a full pass takes.
        pass_cpu: The CPU time of it, in this process.
        before: MB resident of the controller when it had settled.
        after: MB resident of the controller in the end.
        each: MB of each replica with its supervisor (proportional set size).
    """

    services: int
    cpu: float
    server: float
    pass_seconds: float
    pass_cpu: float
    before: float
    after: float
    each: float


def prepared(name: str, infrastructure: Infrastructure) -> PreparedService:
    """Prepare one of the services."""
    from prefect_dstack.configurations import ServiceConfiguration, load_configuration
    from prefect_dstack.services.preparation import prepare

    loaded = load_configuration(
        {
            "type": "service",
            "name": name,
            "port": 8000,
            "path_prefix": f"/{name}",
            "commands": ["exec busybox httpd -f -p 127.0.0.1:$PORT -h /usr/share"],
            "probes": [{"type": "tcp", "interval": "15s"}],
            "replicas": "1..2",
            "scaling": {"metric": "rps", "target": 10},
        }
    )
    assert isinstance(loaded, ServiceConfiguration)
    return prepare(loaded, infrastructure.sources)


def deploy(names: Sequence[str], infrastructure: Infrastructure) -> None:
    """Deploy services, with one change of the gateway for all their routes."""
    from prefect_dstack.gateways.routing import route_of

    services = {name: prepared(name, infrastructure) for name in names}
    gateway = infrastructure.gateway("local")

    def routed(state: GatewayState) -> GatewayState:
        for service in services.values():
            state = state.with_route(route_of(service.routed, state, gateway.port_is_free))
        return state

    state = gateway.control.ensure(gateway.initial_state(), routed)
    with ThreadPoolExecutor(PARALLEL) as pool:
        done = [
            pool.submit(_start, service, state.routes[name], state, infrastructure)
            for name, service in services.items()
        ]
        for each in done:
            each.result()


def _start(
    service: PreparedService, route: Route, state: GatewayState, infrastructure: Infrastructure
) -> None:
    from prefect_dstack.controller.convergence import converge
    from prefect_dstack.controller.plain import PlainActions
    from prefect_dstack.controller.world import ServiceWorld
    from prefect_dstack.domain.record import Deploying
    from prefect_dstack.gateways.routing import endpoint_of
    from prefect_dstack.services.location import location_of
    from prefect_dstack.services.preparation import desired_replicas, goal_for, next_revision
    from prefect_dstack.store.records import new_record, save_record

    gateway = infrastructure.gateway("local")
    name = route.service
    record = new_record(name)
    revision = next_revision(record, service, "")
    desired = desired_replicas(record, service.configuration)
    goal = goal_for(record, revision, service, route, desired.numbers(service.groups))
    found = converge(
        goal,
        ServiceWorld(infrastructure, gateway, name, ["process"]),
        PlainActions(infrastructure, gateway, logger),
        logger,
        flow_run="",
        machine=infrastructure.here.id,
    )
    replicas = [it.replica.name for it in found.found]
    endpoint = endpoint_of(service.configuration, route, state, gateway.address, 1, replicas)
    record = record.begun(revision, Deploying(revision=1, flow_run=""), 1).served(1, endpoint).scaled(desired)
    save_record(record.model_copy(update={"location": location_of(infrastructure, gateway)}))


def measure(services: int, minutes: float, infrastructure: Infrastructure) -> Figures:
    """Measure what runs already, for some minutes."""
    from prefect_dstack.services.reconciliation import reconcile
    from prefect_dstack.store.sources import resolve_infrastructure

    running = processes()
    server = next(it for it, line in running.items() if "server start" in line)
    replicas = [it for it, line in running.items() if "httpd" in line or "/replicas/" in line]
    each = sum(it.memory_full_info().pss for it in replicas) / 1e6 / services
    began, cpu = time.monotonic(), time.process_time()
    found = reconcile(resolve_infrastructure(), logger, dry_run=True, foreign=False)
    seconds, own = time.monotonic() - began, time.process_time() - cpu
    assert not found.done, found.done
    with (Path(os.environ["HOME"]) / f"controller-{services}.log").open("wb") as log:
        controller = psutil.Process(subprocess.Popen(CONTROLLER, stdout=log, stderr=log).pid)
        try:
            time.sleep(SETTLING)
            before, first, servers = controller.memory_info().rss, spent(controller), spent(server)
            began = time.monotonic()
            time.sleep(minutes * 60)
            passed = time.monotonic() - began
            return Figures(
                services=services,
                cpu=(spent(controller) - first) / passed,
                server=(spent(server) - servers) / passed,
                pass_seconds=seconds,
                pass_cpu=own,
                before=before / 1e6,
                after=controller.memory_info().rss / 1e6,
                each=each,
            )
        finally:
            controller.terminate()
            controller.wait(120)


def spent(process: psutil.Process) -> float:
    """Seconds of CPU time of a process."""
    times = process.cpu_times()
    return times.user + times.system


def processes() -> dict[psutil.Process, str]:
    """Return the command lines of the processes of this home."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == os.environ["HOME"]:
                found[process] = " ".join(process.cmdline())
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("services", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--minutes", type=float, default=5, help="how long the controller is looked at")
    options = parser.parse_args()
    if shutil.which("busybox") is None:
        sys.exit("busybox is needed: apt install busybox")
    found: list[Figures] = []
    with served():
        from prefect_dstack.store.sources import resolve_infrastructure

        made: list[str] = []
        try:
            for number in sorted(options.services):
                names = [f"many-{index}" for index in range(len(made), number)]
                began = time.monotonic()
                deploy(names, resolve_infrastructure())
                made += names
                print(f"{number} services after {time.monotonic() - began:.0f} s", file=sys.stderr)
                found.append(measure(number, options.minutes, resolve_infrastructure()))
                print(found[-1], file=sys.stderr)
        finally:
            supervisors = [process for process, line in processes().items() if "supervise.py" in line]
            for process in supervisors:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(supervisors, 120)
    print(f"| {' | '.join(COLUMNS)} |\n|{' ---: |' * len(COLUMNS)}")
    for it in found:
        print(f"| {' | '.join(column(it) for column in COLUMNS.values())} |")


COLUMNS: dict[str, Callable[[Figures], str]] = {
    "services": lambda it: f"{it.services:,}",
    "controller, of a core": lambda it: f"{it.cpu:.1%}",
    "Prefect server, of a core": lambda it: f"{it.server:.1%}",
    "full pass": lambda it: f"{it.pass_seconds:.1f} s",
    "its CPU time": lambda it: f"{it.pass_cpu:.1f} s",
    "controller, MB": lambda it: f"{it.before:.0f} → {it.after:.0f}",
    "each replica, MB": lambda it: f"{it.each:.1f}",
}


if __name__ == "__main__":
    main()
