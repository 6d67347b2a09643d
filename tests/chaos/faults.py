"""The faults: how each strikes, what it may cost, and how it passes.

- A replica that is killed costs the requests in flight on it that may not be sent twice. If it was the only
  one that served, or its service was changing, it costs all until its supervisor has started it again.
- With its supervisor gone, that is when somebody repairs the service.
- HAProxy that is killed costs what comes until its supervisor has started it again; without its supervisor,
  until somebody repairs it.
- The end of a command, of the controller or of the Prefect server costs no request, nor does a full disk, nor
  a replica that is suspended for less time than its clients wait.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence

import psutil

from tests.chaos import outside
from tests.chaos.commands import Command
from tests.chaos.costs import Cost, Ledger
from tests.chaos.plan import Fault
from tests.home import Home
from tests.prefect_server import PrefectServer

# Seconds until a supervisor has started a program again, and its gateway has found it, on a busy machine.
RESTART = 15.0
# A replica that began so long ago is in the route.
SETTLED = 10.0
BALLAST = "ballast"

Heal = Callable[[], None]


class Faults:
    """Strikes where it is told to.

    Args:
        home: What it strikes.
        server: The Prefect server.
        names: The services by what the plan calls them.
        ledger: Told what may be lost.
    """

    def __init__(self, home: Home, server: PrefectServer, names: dict[str, str], ledger: Ledger) -> None:
        self.home, self.server, self.names, self.ledger = home, server, names, ledger

    def strike(self, fault: Fault, commands: Sequence[Command], *, changing: bool) -> tuple[str, Heal | None]:
        """Let something go wrong.

        Args:
            fault: What.
            commands: Those that run.
            changing: Whether one of them changes the service in question.

        Returns:
            What it was, and what makes it pass.
        """
        service = self.names[fault.service]
        match fault.kind:
            case "kill-command":
                return self._kill_command(commands), None
            case "kill-replica":
                return self._kill_one("replica", service, changing, RESTART), None
            case "kill-supervisor":
                return self._kill_one("supervisor", service, changing, math.inf), None
            case "kill-haproxy":
                return self._kill_first("haproxy", outside.GATEWAY, RESTART), None
            case "kill-haproxy-supervisor":
                return self._kill_first("supervisor", outside.GATEWAY, math.inf), None
            case "kill-controller":
                return self._kill_first("controller", "controller", None), None
            case "kill-server":
                self.server.stop()
                return "killed the Prefect server", self.server.start
            case "suspend-replica":
                return self._suspend(service)
            case "fill-disk":
                return self._fill_disk()
        raise AssertionError(fault)

    def _kill_command(self, commands: Sequence[Command]) -> str:
        running = [command for command in commands if command.code is None]
        if not running:
            return "every command had ended"
        running[0].kill()
        return f"killed {' '.join(running[0].arguments)}"

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

    def _kill_first(self, role: outside.Role, of: str, lasts: float | None) -> str:
        found = [it for it in outside.processes(self.home) if (it.role, it.of) == (role, of)]
        if not found:
            return f"no {role} of {of} ran"
        return self._kill(found[0], None if lasts is None else Cost("", time.monotonic(), lasts))

    def _kill(self, victim: outside.Found, cost: Cost | None) -> str:
        if cost is not None:
            self.ledger.costs.append(cost)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.process.kill()
        return f"killed {victim}, process {victim.process.pid}"

    def _suspend(self, service: str) -> tuple[str, Heal | None]:
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

    def _fill_disk(self) -> tuple[str, Heal | None]:
        if not self.home.path.is_mount():
            return "the home has no disk of its own to fill", None
        ballast = self.home.path / BALLAST
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return "filled the disk", ballast.unlink
