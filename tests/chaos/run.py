"""A run: the operations and faults of a plan, one turn after the other, and what became of them."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.chaos.clients import Clients
from tests.chaos.clock import SetClock
from tests.chaos.commands import Command, Worker
from tests.chaos.costs import Ledger
from tests.chaos.faults import Faults
from tests.chaos.invariants import Known, broken
from tests.chaos.operations import DEPLOYS, FAILS, SUCCEEDS, Operations
from tests.chaos.place import Heal, Place
from tests.chaos.plan import SERVICES, Operation, Plan, Turn
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

POLL = 0.05
# A command may wait for the lease of one that was killed, and for a server that has to start.
PATIENCE = 240.0
# So may what comes to rest after all of it.
REST = 150.0


class Run:
    """One run.

    Args:
        plan: What is done.
        home: Where commands run, empty as yet.
        place: Where the services are.
        ledger: Which requests may fail; the place tells it.
        server: The Prefect server.
        clock: That of all commands, and of what they start.

    Attributes:
        problems: What was not as it should be, in words.
    """

    def __init__(
        self, plan: Plan, home: Home, place: Place, ledger: Ledger, server: PrefectServer, clock: SetClock
    ) -> None:
        self.plan, self.home, self.place, self.ledger = plan, home, place, ledger
        # Names of its own, as the server goes on to the next run.
        self.names = {service: f"{service}{plan.seed}" for service in SERVICES}
        self.ports = {name: home.port + number for number, name in enumerate(self.names.values())}
        self.operations = Operations(home, place, self.ports, home.path.parent / "commands")
        self.worker = Worker(self.operations.logs)
        self.faults = Faults(home, server, self.worker, place, clock, self.names)
        self.clients: list[Clients] = []
        self.problems: list[str] = []
        self._story: list[str] = []
        self._began = time.monotonic()
        self._judged = 0

    def check(self) -> None:
        """Do all of it, and raise an error that tells what was wrong."""
        try:
            self.begin()
            self.go()
        finally:
            self.end()
        assert not self.problems, self.report()

    def begin(self) -> None:
        """Start what is there before the first turn."""
        self.worker.start()
        self.place.begin(self._done)
        first = Operation("create-token")
        command = self.operations.start(first, "")
        self._end(command)
        self.operations.note(first, "", command)
        if self.plan.controller:
            self._done("controller", "start")
        (token,) = self.operations.tokens.values()
        self.clients = [Clients(name, self.place.address, port, token) for name, port in self.ports.items()]

    def go(self) -> None:
        """Take all turns, and let it come to rest."""
        for number, turn in enumerate(self.plan.turns):
            self._tell(f"turn {number}: {turn}")
            self._take(turn)
            self._judge()
        self._tell("comes to rest")
        self._rest()
        self._judge()

    def end(self) -> None:
        """Take everything down, as a user would."""
        for clients in self.clients:
            clients.close()
        self._done("controller", "stop")
        self._done("stop", "--all", "-y")
        known = [name for name, record in self._records().items() if record is not None]
        if known:
            self._done("delete", *known, "-y")
        self.problems += [f"in the end: {line}" for line in self.place.end(self._done)]
        self.worker.kill()

    def report(self) -> str:
        """Tell what was wrong, what was planned, and what happened."""
        return "\n".join([*self.problems, "", str(self.plan), "", *self._story])

    def _take(self, turn: Turn) -> None:
        for operation in turn.operations:
            if operation.kind == "stop":
                self.ledger.stops(self.names[operation.service], time.monotonic())
        commands = [
            self.operations.start(operation, self.names.get(operation.service, ""))
            for operation in turn.operations
        ]
        heal = self._strike(turn, commands)
        self._heal(turn, heal)
        for command in commands:
            self._end(command)
        for operation, command in zip(turn.operations, commands, strict=True):
            self._conclude(operation, command, turn)
        self.ledger.turn_ends(time.monotonic())

    def _strike(self, turn: Turn, commands: list[Command]) -> Heal | None:
        """Wait for the moment of the fault."""
        fault = turn.fault
        if fault is None:
            return None

        def is_due() -> bool:
            lines = sum(command.output.count("\n") for command in commands)
            return lines >= fault.lines or all(command.code is not None for command in commands)

        wait_until(is_due, PATIENCE, str(fault), interval=POLL)
        time.sleep(fault.delay)
        changing = any(operation.service == fault.service for operation in turn.operations)
        what, heal = self.faults.strike(fault, commands, changing=changing)
        self._tell(what)
        return heal

    def _heal(self, turn: Turn, heal: Heal | None) -> None:
        if turn.fault is not None and heal is not None:
            time.sleep(turn.fault.seconds)
            heal()
            self._tell("that is over")

    def _conclude(self, operation: Operation, command: Command, turn: Turn) -> None:
        name = self.names.get(operation.service, "")
        *_, last = [" (nothing)", *command.output.strip().splitlines()]
        self._tell(f"{operation} -> {command.code}: {last}")
        beside = [other for other in turn.operations if other is not operation]
        same = [other.kind for other in beside if other.service == operation.service != ""]
        # That of a user's own program is Prefect's to show.
        if "Traceback" in command.output and operation.kind != "pipeline":
            self.problems.append(f"a traceback: {command}")
        if operation.kind in SUCCEEDS and command.code != 0 and turn.fault is None and not same:
            self.problems.append(f"failed though nothing disturbed it: {command}")
        if operation.kind in FAILS and command.code == 0:
            self.problems.append(f"a broken version was deployed: {command}")
        if command.code == 0:
            self.operations.note(operation, name, command)
            self.ledger.succeeded(
                name,
                command.began,
                time.monotonic(),
                serves=operation.kind in DEPLOYS and "stop" not in same,
                repairs=operation.kind in {*DEPLOYS, "reconcile"},
            )

    def _rest(self) -> None:
        if self.plan.controller:
            # A new one looks at everything at once.
            self._done("controller", "stop")
            self._done("controller", "start")
        found: list[str] = []

        def at_rest() -> bool:
            if not self.plan.controller:
                repair = self._done("reconcile")
                self._tell(f"reconcile -> {repair.code}: {' '.join(repair.output.split())}")
            found[:] = broken(self.home, self.place, self._known())
            return not found

        try:
            wait_until(at_rest, REST, "all is as it should be", interval=0.5)
        except TimeoutError:
            self.problems += [f"after {REST:.0f} s: {line}" for line in found]

    def _known(self) -> Known:
        return Known(
            ports=self.ports,
            records=self._records(),
            codes=self.operations.codes,
            accepted=list(self.operations.tokens.values()),
            revoked=self.operations.revoked,
            controller=self.plan.controller,
        )

    def _records(self) -> dict[str, Any]:
        """Return what is known of each service; None: there is none of that name."""
        commands = {name: self.operations.command("inspect", name, "--json") for name in self.ports}
        for command in commands.values():
            self._end(command)
        return {
            name: json.loads(command.result) if command.code == 0 else None
            for name, command in commands.items()
        }

    def _done(self, *arguments: str) -> Command:
        command = self.operations.command(*arguments)
        self._end(command)
        return command

    def _end(self, command: Command) -> None:
        command.process.join(PATIENCE)
        if command.code is None:
            command.kill()
            self.problems.append(f"did not end within {PATIENCE:.0f} s: {command}")

    def _judge(self) -> None:
        failures = [failure for clients in self.clients for failure in list(clients.failures)]
        failures.sort(key=lambda failure: failure.ended)
        for failure in self.ledger.unexcused(failures[self._judged :]):
            when = f"{failure.began - self._began:.2f} to {failure.ended - self._began:.2f}"
            self.problems.append(f"{failure.service} failed {failure.method} from {when}: {failure.what}")
        self._judged = len(failures)

    def _tell(self, what: str) -> None:
        self._story.append(f"{time.monotonic() - self._began:7.2f} {what}")
