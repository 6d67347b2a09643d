"""The operations: which command each is, and what is known from those that succeeded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.chaos.commands import ASK_WORKER, PIPELINE, Command
from tests.chaos.place import Place
from tests.chaos.plan import Operation
from tests.home import Home

APPLICATION = Path(__file__).with_name("app.py")

REPLICAS = {"alpha": 2, "beta": 1, "gamma": 2}
NEEDS_TOKEN = {"gamma"}
TASK = {"type": "task", "commands": ["sleep 1; echo done"]}
CANARY = {"strategy": "canary", "canary": {"weight": "50%", "duration": "3s"}}

# What must succeed if nothing goes wrong; others may be refused, such as a rollback to nothing.
SUCCEEDS = {"edit", "change-setting", "pipeline", "worker", "reconcile", "create-token", "task"}
FAILS = {"break-start", "break-probe"}
# After these a service answers.
DEPLOYS = {"edit", "change-setting", "pipeline", "worker", "canary", "scale", "rollback", "restart"}
TELLS_REVISION = {"edit", "change-setting", "canary"}


class Operations:
    """Runs commands, and remembers what they told.

    Args:
        home: Where they run.
        place: Where the services are.
        ports: Where each service is to answer, by its name.
        logs: What they write goes here.

    Attributes:
        codes: Which code a revision of a service has.
        tokens: Tokens that were created, by their ids.
        revoked: Tokens that were revoked.
    """

    def __init__(self, home: Home, place: Place, ports: dict[str, int], logs: Path) -> None:
        self.home, self.place, self.ports, self.logs = home, place, ports, logs
        self.codes: dict[tuple[str, int], int] = {}
        self.tokens: dict[str, str] = {}
        self.revoked: list[str] = []
        self._written: dict[str, int] = {}
        self._count = 0
        logs.mkdir()

    def command(self, *arguments: str) -> Command:
        """Start a command."""
        self._count += 1
        return Command(arguments, self.logs, self.logs / f"{self._count}.log")

    def start(self, operation: Operation, name: str) -> Command:
        """Start an operation.

        Args:
            operation: Which.
            name: The name of its service; empty: it is of none.
        """
        match operation.kind:
            case "pipeline":
                return self.command(PIPELINE, self._service(operation, name))
            case "worker":
                return self.command(ASK_WORKER, self._service(operation, name))
            case "scale":
                return self.command("scale", name, str(operation.number))
            case "rollback" | "stop":
                return self.command(operation.kind, name, "-y")
            case "restart" | "reconcile":
                return self.command(*filter(None, [operation.kind, name]))
            case "create-token":
                return self.command("token", "create", "--json")
            case "revoke-token":
                _, *others = self.tokens
                return self.command("token", "revoke", others[0] if others else "0000000000")
            case "task":
                file = self.home.path / "task.dstack.yml"
                file.write_text(json.dumps(TASK | self.place.task()))
                return self.command("apply", str(file), "-y")
        return self.command("apply", self._service(operation, name), "-y", "--json")

    def note(self, operation: Operation, name: str, command: Command) -> None:
        """Remember what a command told that has succeeded."""
        if operation.kind in TELLS_REVISION:
            answer = json.loads(command.result)
            if not answer["superseded"]:
                self.codes[name, answer["revision"]] = self._written[command.arguments[1]]
        elif operation.kind == "create-token":
            answer = json.loads(command.result)
            self.tokens[answer["id"]] = answer["token"]
        elif operation.kind == "revoke-token":
            self.revoked.append(self.tokens.pop(command.arguments[-1]))

    def _service(self, operation: Operation, name: str) -> str:
        """Write a version of a service, each in a directory of its own."""
        directory = self.home.path / "files" / f"{name}-{operation.number}"
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(APPLICATION, directory)
        kind, code = operation.kind, operation.number
        rollout: dict[str, Any] = {}
        if kind == "change-setting":
            code = max((code for (service, _), code in self.codes.items() if service == name), default=code)
        elif kind == "break-probe":
            rollout = {"timeout": "5s"}
        elif kind == "canary":
            rollout = CANARY
        behaviour = {"code": code, "exits": kind == "break-start", "unhealthy": kind == "break-probe"}
        (directory / "behaviour.json").write_text(json.dumps(behaviour))
        configuration = {
            "type": "service",
            "name": name,
            "port": f"{self.ports[name]}:8000",
            "auth": operation.service in NEEDS_TOKEN,
            "probes": [{"url": "/health", "interval": "1s"}],
            "replicas": REPLICAS[operation.service],
            "rollout": rollout,
            **self.place.configuration(directory),
        }
        if kind == "change-setting":
            configuration["rate_limits"] = [{"rps": 1000 + operation.number, "burst": 1000}]
        file = directory / "service.dstack.yml"
        file.write_text(json.dumps(configuration))
        self._written[str(file)] = code
        return str(file)
