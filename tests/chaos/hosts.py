"""Services as containers on hosts, behind a gateway on another one, and what goes wrong with those.

- A container whose program is killed costs the requests in flight on it that may not be sent twice. If it was
  the only one that served, or its service was changing, it costs all until it serves again.
- A host that loses its power, or its network, costs the requests in flight on its replicas. If no others of a
  service have settled, it costs all until the host is back.
- A gateway whose HAProxy is killed, or whose host is switched off, costs all until it is back.
- A host that commands cannot reach costs no request.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.chaos import outside
from tests.chaos.costs import Cost, Ledger
from tests.chaos.place import Struck, Wanted
from tests.chaos.plan import ON_HOSTS, Fault
from tests.flows.lab import FLEET, GATEWAY, Lab
from tests.home import Home
from tests.testbed.host import Host

ROOT = Path(__file__).parents[2]
# Seconds until Docker has started a program again, and the gateway has found it.
RESTART = 15.0
# And until a host has started, and all that it runs.
REBOOT = 45.0
# A container that began so long ago is in the route.
SETTLED = 15.0
# Each of the two clients of a service has one request in flight, and its next one may go the same way.
IN_FLIGHT = 4
PREFIX = "prefect-dstack-"
FORMAT = "{{.Name}} {{.State.Running}} {{.State.Pid}} {{.State.StartedAt}}"
INSPECT = f"docker ps -aq | xargs -r docker inspect --format '{FORMAT}'"


@dataclass(frozen=True)
class Container:
    """A container of a replica: its name, its host, and since when it has run, if it does."""

    name: str
    host: Host
    running: bool
    pid: int
    began: float

    @property
    def service(self) -> str:
        """The service whose replica it is."""
        return self.name.rsplit("-", 2)[0]


class Hosts:
    """Three hosts for replicas, and one for the gateway.

    Args:
        lab: The hosts.
        home: Where commands run.
        ledger: Told what may be lost.
    """

    faults = ON_HOSTS

    def __init__(self, lab: Lab, home: Home, ledger: Ledger) -> None:
        self.lab, self.home, self.ledger = lab, home, ledger
        self.address = lab.edge.address
        self._before = lab.traces()

    def begin(self, done: Callable[..., object]) -> None:
        """Create the fleet and the gateway."""
        for kind, configuration in (("fleet", self.lab.fleet()), ("gateway", self.lab.gateway())):
            file = self.home.path / f"{kind}.dstack.yml"
            file.write_text(json.dumps(configuration))
            done("apply", str(file), "-y")

    def end(self, done: Callable[..., object]) -> list[str]:
        """Delete them, and return what hosts and the home have left."""
        done("gateway", "delete", GATEWAY, "-y")
        done("fleet", "delete", FLEET, "-y")
        left = self.lab.differences(self._before, self.lab.traces())
        found = [f"{where}: {before} became {after}" for where, (before, after) in left.items()]
        return found + self.home.leftovers()

    def configuration(self, directory: Path) -> dict[str, Any]:
        """Return the keys by which the application in a directory runs in a container."""
        example = ROOT / "examples" / "hello" / "app.py"
        return {
            "image": "testbed/app:1",
            "gateway": GATEWAY,
            "auth": False,
            "commands": ["cd /srv", "exec python3 app.py"],
            "env": {"LISTEN": "0.0.0.0"},
            "files": [
                f"{directory}/app.py:/srv/app.py",
                f"{directory}/behaviour.json:/srv/behaviour.json",
                f"{example}:/srv/examples/hello/app.py",
            ],
        }

    def task(self) -> dict[str, Any]:
        """Return the keys by which a task runs in a container."""
        return {"image": "testbed/app:1"}

    def strike(self, fault: Fault, service: str, *, changing: bool) -> Struck:
        """Let something go wrong with a service, or with a host of its replicas."""
        host, edge = self._host(service, fault), self.lab.edge
        match fault.kind:
            case "kill-container":
                return self._kill_container(service, changing), None
            case "power-off":
                self._harm(host, REBOOT)
                host.power_off()
                return f"switched {host.name} off", host.start
            case "partition":
                self._harm(host, RESTART)
                host.partition()
                return f"cut {host.name} off from all", host.heal
            case "cut-off":
                host.isolate_from(self.lab.testbed)
                return f"cut {host.name} off from this machine", lambda: host.rejoin(self.lab.testbed)
            case "stop-ssh":
                host.stop_ssh()
                return f"stopped the SSH server of {host.name}", host.restart_ssh
            case "kill-gateway":
                self.ledger.costs.append(Cost("", time.monotonic(), RESTART))
                edge.exec(["pkill", "-KILL", "haproxy"])
                return "killed HAProxy", None
            case "reboot-gateway":
                self.ledger.costs.append(Cost("", time.monotonic(), REBOOT))
                edge.power_off()
                return "switched the gateway off", edge.start
        raise AssertionError(fault)

    def differences(self, wanted: Wanted) -> Iterator[str]:
        """Compare containers, and the processes of this machine, with what is wanted."""
        yield from outside.unexpected(self.home, Counter(), controller=wanted.controller)
        containers = self._containers()
        found = Counter(container.name for container in containers if container.running)
        expected = Counter(wanted.names)
        yield from (f"{number} too many: container {it}" for it, number in (found - expected).items())
        yield from (f"{number} missing: container {it}" for it, number in (expected - found).items())
        ended = (it for it in containers if not it.running)
        yield from (f"container {it.name} on {it.host.name} has ended" for it in ended)

    def _containers(self) -> list[Container]:
        """Return the containers on all hosts that are on."""
        return [
            _container(host, line)
            for host in self.lab.hosts
            if host.running
            for line in host.exec(["sh", "-c", INSPECT]).stdout.splitlines()
        ]

    def _host(self, service: str, fault: Fault) -> Host:
        """Return a host with a replica of a service, if there is one."""
        names = sorted({it.host.name for it in self._containers() if it.running and it.service == service})
        hosts = [it for it in self.lab.hosts if it.name in names] or self.lab.hosts
        return hosts[fault.lines % len(hosts)]

    def _kill_container(self, service: str, changing: bool) -> str:
        found = [it for it in self._containers() if it.running and it.service == service]
        if not found:
            return f"{service} had no container"
        now = time.monotonic()
        victim, *others = found
        if changing or not any(map(_is_settled, others)) or self.ledger.is_harmed(service, now):
            cost = Cost(service, now, RESTART)
        else:
            cost = Cost(service, now, RESTART, ("POST",), most=1)
        self.ledger.costs.append(cost)
        victim.host.exec(["kill", "-KILL", str(victim.pid)])
        return f"killed the program of {victim.name} on {victim.host.name}"

    def _harm(self, host: Host, lasts: float) -> None:
        """Note what it costs that a host is gone."""
        now, containers = time.monotonic(), self._containers()
        for service in {it.service for it in containers if it.host is host}:
            others = [it for it in containers if it.service == service and it.host is not host]
            spared = any(map(_is_settled, others)) and not self.ledger.is_harmed(service, now)
            self.ledger.costs.append(Cost(service, now, lasts, most=IN_FLIGHT if spared else math.inf))


def _container(host: Host, line: str) -> Container:
    name, running, pid, began = line.removeprefix("/").split()
    moment = datetime.fromisoformat(began).timestamp() if running == "true" else math.inf
    return Container(name.removeprefix(PREFIX), host, running == "true", int(pid), moment)


def _is_settled(container: Container) -> bool:
    return time.time() - container.began > SETTLED
