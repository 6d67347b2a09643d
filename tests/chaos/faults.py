"""The faults that may strike wherever replicas run: how each does, and how it passes.

The end of a command, a worker, the controller or the Prefect server costs no request, nor does a clock that
is set. What replicas and gateways are subject to is told by the place where they run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.chaos import outside
from tests.chaos.clock import SetClock
from tests.chaos.commands import Command, Worker
from tests.chaos.place import Place, Struck
from tests.chaos.plan import Fault
from tests.home import Home
from tests.prefect_server import PrefectServer


class Faults:
    """Strikes where it is told to.

    Args:
        home: Where commands run.
        server: The Prefect server.
        worker: The worker.
        place: Where the services are.
        clock: That of all commands, and of what they start.
        names: The services by what the plan calls them.
    """

    def __init__(
        self,
        home: Home,
        server: PrefectServer,
        worker: Worker,
        place: Place,
        clock: SetClock,
        names: dict[str, str],
    ) -> None:
        self.home, self.server, self.worker, self.place = home, server, worker, place
        self.clock, self.names = clock, names

    def strike(self, fault: Fault, commands: Sequence[Command], *, changing: bool) -> Struck:
        """Let something go wrong.

        Args:
            fault: What.
            commands: Those that run.
            changing: Whether one of them changes the service in question.

        Returns:
            What it was, and what makes it pass.
        """
        match fault.kind:
            case "kill-command":
                return self._kill_command(commands), None
            case "kill-worker":
                self.worker.kill()
                self.worker.start()
                return "killed the worker and its flow run", None
            case "kill-controller":
                return self._kill_controller(), None
            case "kill-server":
                self.server.stop()
                return "killed the Prefect server", self.server.start
            case "set-clock":
                return self.clock.set(random.Random(fault.lines + fault.delay)), None
        return self.place.strike(fault, self.names[fault.service], changing=changing)

    def _kill_command(self, commands: Sequence[Command]) -> str:
        running = [command for command in commands if command.code is None]
        if not running:
            return "every command had ended"
        running[0].kill()
        return f"killed {' '.join(running[0].arguments)}"

    def _kill_controller(self) -> str:
        found = [it for it in outside.processes(self.home) if it.role == "controller"]
        return outside.kill(found[0]) if found else "no controller ran"
