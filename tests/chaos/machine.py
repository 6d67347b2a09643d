"""Services as processes of this machine, and what goes wrong with those.

- A replica that is killed costs the requests in flight on it that may not be sent twice. If it was the only
  one that served, or its service was changing, it costs all until its supervisor has started it again.
- With its supervisor gone, that is when somebody repairs the service.
- HAProxy that is killed costs what comes until its supervisor has started it again; without its supervisor,
  until somebody repairs it.
- A full disk costs no request, nor does a replica that is suspended for less time than its clients wait.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import outside
from tests.chaos.costs import Cost, Ledger
from tests.chaos.place import Struck, Wanted
from tests.chaos.plan import ON_MACHINE, Fault
from tests.home import PORTS, Home

ROOT = Path(__file__).parents[2]
# Seconds until a supervisor has started a program again, and its gateway has found it, on a busy machine.
RESTART = 15.0
# A replica that began so long ago is in the route.
SETTLED = 10.0
BALLAST = "ballast"


class Machine:
    """This machine.

    Args:
        home: Where everything is.
        ledger: Told what may be lost.
    """

    faults = ON_MACHINE
    address = "127.0.0.1"

    def __init__(self, home: Home, ledger: Ledger) -> None:
        self.home, self.ledger = home, ledger

    def begin(self, done: Callable[..., object]) -> None:
        """Do nothing: the local gateway comes with the first service."""

    def end(self, done: Callable[..., object]) -> list[str]:
        """Return what the home has left."""
        return self.home.leftovers()

    def configuration(self, directory: Path) -> dict[str, Any]:
        """Return the keys by which the application in a directory runs here."""
        return {"commands": ["exec python3 app.py"], "env": {"PYTHONPATH": str(ROOT)}}

    def task(self) -> dict[str, Any]:
        """Return no keys: a task runs here by itself."""
        return {}

    def strike(self, fault: Fault, service: str, *, changing: bool) -> Struck:
        """Let something go wrong with a service."""
        match fault.kind:
            case "kill-replica":
                return self._kill_one("replica", service, changing, RESTART), None
            case "kill-supervisor":
                return self._kill_one("supervisor", service, changing, math.inf), None
            case "kill-haproxy":
                return self._kill_gateway("haproxy", RESTART), None
            case "kill-haproxy-supervisor":
                return self._kill_gateway("supervisor", math.inf), None
            case "suspend-replica":
                return self._suspend(service)
            case "fill-disk":
                return self._fill_disk()
        raise AssertionError(fault)

    def differences(self, wanted: Wanted) -> Iterator[str]:
        """Compare processes, directories, routes and ports with what is wanted."""
        yield from self._processes(wanted)
        replicas = {place.name for place in self.home.state.glob("replicas/*/")}
        if replicas != wanted.names:
            yield f"directories of replicas are {sorted(replicas)}, not {sorted(wanted.names)}"
        yield from self._gateway(wanted.replicas)
        yield from self._ports(wanted)

    def _processes(self, wanted: Wanted) -> Iterator[str]:
        expected: Counter[str] = Counter()
        for name in wanted.names:
            expected += Counter([f"supervisor of replicas/{name}", f"replica of replicas/{name}"])
        if wanted.ports:
            roles = ("supervisor", "haproxy", "haproxy worker")
            expected += Counter(f"{role} of {outside.GATEWAY}" for role in roles)
        yield from outside.unexpected(self.home, expected, controller=wanted.controller)

    def _gateway(self, wanted: Mapping[str, set[str]]) -> Iterator[str]:
        state = outside.gateway_state(self.home)
        routes = {} if state is None else state["routes"]
        routed = {service: set(route["replicas"]) for service, route in routes.items()}
        if routed != wanted:
            yield f"the gateway routes {routed}, not {dict(wanted)}"
        for service, route in routes.items():
            states = {(it["weight"], it["state"], it["checked"]) for it in route["replicas"].values()}
            if len(states) > 1 or route["compared"]:
                yield f"{service}: its route is uneven: {route}"

    def _ports(self, wanted: Wanted) -> Iterator[str]:
        used, services = outside.listening_ports(self.home), set(wanted.ports.values())
        own = {port for name, port in outside.replica_ports(self.home).items() if name in wanted.names}
        if used != services | own:
            yield f"ports in use are {sorted(used)}, not {sorted(services | own)}"
        others = {self.home.port + number for number in range(PORTS)} - services
        if others & used:
            yield f"nobody should listen on {sorted(others & used)}"

    def _kill_one(self, role: outside.Role, service: str, changing: bool, lasts: float) -> str:
        found = outside.of_service(outside.processes(self.home), service, role)
        if not found:
            return f"{service} had no replica"
        now = time.monotonic()
        victim, *others = found
        settled = [it for it in others if time.time() - it.process.create_time() > SETTLED]
        if changing or not settled or self.ledger.is_harmed(service, now):
            return self._kill(victim, Cost(service, now, lasts))
        return self._kill(victim, Cost(service, now, RESTART, ("POST",), most=1))

    def _kill_gateway(self, role: outside.Role, lasts: float) -> str:
        found = [it for it in outside.processes(self.home) if (it.role, it.of) == (role, outside.GATEWAY)]
        if not found:
            return f"no {role} of {outside.GATEWAY} ran"
        return self._kill(found[0], Cost("", time.monotonic(), lasts))

    def _kill(self, victim: outside.Found, cost: Cost) -> str:
        self.ledger.costs.append(cost)
        return outside.kill(victim)

    def _suspend(self, service: str) -> Struck:
        found = outside.of_service(outside.processes(self.home), service, "replica")
        if not found:
            return f"{service} had no replica", None
        process = found[0].process

        def resume() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
        return f"suspended {found[0]}, process {process.pid}", resume

    def _fill_disk(self) -> Struck:
        if not self.home.path.is_mount():
            return "the home has no disk of its own to fill", None
        ballast = self.home.path / BALLAST
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return "filled the disk", ballast.unlink
