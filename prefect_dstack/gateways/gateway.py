"""A gateway: one desired state, and an HAProxy that always runs what is on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_dstack.errors import ConflictError, GatewayError, NotFoundError
from prefect_dstack.gateways import latency
from prefect_dstack.gateways.changes import Command, changes
from prefect_dstack.gateways.place import Place
from prefect_dstack.gateways.runtime import Workers, ask, parse_statistics, parse_table, parse_workers
from prefect_dstack.gateways.servers import backend
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.gateways.template import CONFIGURATION, render

__all__ = ["Gateway", "ReplicaHealth", "ReplicaStatistics"]

STATE = "state.json"
# There while files and HAProxy may differ; whoever finds it reloads.
UNFINISHED = "unfinished"
ANSWER_TIMEOUT = 2.0
FORMER_PATIENCE = 5
RELOAD_TIMEOUT = 60.0
START_TIMEOUT = 20.0


class ReplicaHealth(BaseModel):
    """What the gateway thinks of a replica."""

    model_config = ConfigDict(frozen=True)

    status: Literal["UP", "DOWN", "DRAIN"] = Field(
        description="DOWN: its checks fail. DRAIN: no new requests."
    )
    check: str = Field(description="The last check in a few words; empty if it is not checked.")
    since: float = Field(description="Seconds that it has been so.")


class ReplicaStatistics(BaseModel):
    """What the gateway has seen of a replica since its last reload."""

    model_config = ConfigDict(frozen=True)

    process: int = Field(description="The process that counted; another one has begun anew.")
    requests: int = Field(description="Answers that began.")
    server_errors: int = Field(description="Answers of its own with a status of 500 or above.")
    connection_errors: int = Field(description="Connections that failed.")
    response_errors: int = Field(description="Requests it took and never answered.")
    durations: tuple[int, ...] = Field(
        description="How many answers began after how long, in the buckets of `latency.BUCKETS`."
    )

    @property
    def error_rate(self) -> float | None:
        """The share of its requests that it failed; None without any request."""
        failed = self.connection_errors + self.response_errors
        asked = self.requests + failed
        return (self.server_errors + failed) / asked if asked else None

    @property
    def mean(self) -> float | None:
        """Mean milliseconds from the request to the beginning of the answer."""
        return latency.mean(self.durations)

    @property
    def p95(self) -> float | None:
        """Milliseconds within which 95 % of the answers began."""
        return latency.quantile(self.durations, 0.95)

    def since(self, earlier: ReplicaStatistics) -> ReplicaStatistics:
        """Tell what happened after an earlier look, or after the last reload if that was later."""
        if earlier.process != self.process:
            return self
        fields = {
            name: max(0, getattr(self, name) - getattr(earlier, name))
            for name in ("requests", "server_errors", "connection_errors", "response_errors")
        }
        durations = tuple(
            max(0, now - then) for now, then in zip(self.durations, earlier.durations, strict=True)
        )
        return ReplicaStatistics(process=self.process, durations=durations, **fields)


class Gateway:
    """Controls one gateway.

    Args:
        place: Where it lives.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def state(self) -> GatewayState:
        """Read the desired state.

        Returns:
            The state.

        Raises:
            NotFoundError: If there is no such gateway.
            GatewayError: If its state cannot be read.
        """
        data = self.place.read(STATE)
        if data is None:
            raise NotFoundError(f"{self.place.name} does not exist")
        try:
            return GatewayState.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise GatewayError(
                f"{self.place.name}: {STATE} cannot be read: {place}: {problem['msg']}; "
                "it was damaged, or written by another version of prefect-dstack"
            ) from None

    def ensure_running(self, initial_state: GatewayState) -> GatewayState:
        """Create the gateway if it does not exist, and start it if it does not run.

        Args:
            initial_state: What a new gateway begins with; an existing one keeps its state.

        Returns:
            The gateway's state.

        Raises:
            GatewayError: If it cannot be started.
        """
        with self.place.lock():
            try:
                state = self.state()
            except NotFoundError:
                self._refuse_taken_ports(_ports(initial_state), initial_state)
                self._write(initial_state)
                state = initial_state
            if not self._ready():
                self._start(state)
            elif self.place.read(UNFINISHED) is not None:
                self._write(state)
                self._reload()
                self.place.remove(UNFINISHED)
        return state

    def change(self, transition: Callable[[GatewayState], GatewayState]) -> GatewayState:
        """Change the desired state, and HAProxy with it; nobody else can meanwhile.

        Args:
            transition: From the present state to the new one; it may raise.

        Returns:
            The new state, which runs.

        Raises:
            NotFoundError: If there is no such gateway.
            ConflictError: If another program listens on a port of the new state.
            GatewayError: If HAProxy refuses the new state; the old one goes on running.
        """
        with self.place.lock():
            old = self.state()
            new = transition(old)
            unfinished = self.place.read(UNFINISHED) is not None
            if new == old and not unfinished:
                return new
            self._apply(old, new, unfinished)
        return new

    def _apply(self, old: GatewayState, new: GatewayState, unfinished: bool) -> None:
        if not self._ready():
            self._write(new)
            self._start(new)
            return
        plan = changes(old, new)
        if plan.reload or unfinished:
            self._refuse_taken_ports(set(_ports(new)) - set(_ports(old)), new)
            self.place.check(render(new)[CONFIGURATION])
        self._write(new)
        try:
            if plan.reload or unfinished or not self._run(plan.commands):
                self._reload()
        except GatewayError:
            self._write(old)
            raise
        self.place.remove(UNFINISHED)

    def _write(self, state: GatewayState) -> None:
        self.place.write(
            {UNFINISHED: b"", **render(state), STATE: state.model_dump_json(indent=1).encode() + b"\n"}
        )

    def _refuse_taken_ports(self, ports: Iterable[int], state: GatewayState) -> None:
        for port in sorted(ports):
            if not self.place.port_is_free(port, state.bind_address):
                raise ConflictError(
                    f"port {port} of {self.place.name} is in use by another program, choose another port"
                )

    def _ready(self) -> bool:
        try:
            return bool(self._workers().current)
        except GatewayError:
            return False

    def _start(self, state: GatewayState) -> None:
        """Start HAProxy, or wait until its supervisor has brought it back."""
        self.place.check(render(state)[CONFIGURATION])
        self.place.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._ready():
            if time.monotonic() > deadline:
                lines = self.place.log().strip().splitlines()
                alerts = (
                    [line for line in lines if line.startswith("[ALERT]")] or lines or ["it wrote nothing"]
                )
                raise GatewayError(f"{self.place.name} did not start: {alerts[-1]}")
            time.sleep(0.02)
        self.place.remove(UNFINISHED)

    def _reload(self) -> None:
        answer = self._ask("reload", RELOAD_TIMEOUT)
        if not answer.startswith("Success=1"):
            alerts = [line for line in answer.splitlines() if line.startswith("[ALERT]")]
            raise GatewayError(f"{self.place.name}: HAProxy refuses to reload: {'; '.join(alerts) or answer}")

    def _master(self, command: str) -> str:
        return self._ask(command, ANSWER_TIMEOUT)

    def _ask(self, command: str, timeout: float) -> str:
        try:
            connection = self.place.connect(timeout)
        except OSError as error:
            raise GatewayError(f"{self.place.name} cannot be reached: {error}") from error
        return ask(connection, command)

    def _workers(self) -> Workers:
        return parse_workers(self._master("show proc"))

    def _current_worker(self) -> int:
        current = self._workers().current
        if not current:
            raise GatewayError(f"{self.place.name} has no process that answers; it is being started again")
        return current[0]

    def _run(self, commands: tuple[Command, ...]) -> bool:
        """Run commands; former processes need none, as they pass new requests on to the current one."""
        worker = self._current_worker()
        return all(self._run_on(worker, command) for command in commands)

    def _run_on(self, worker: int, command: Command) -> bool:
        deadline = time.monotonic() + command.patience
        while True:
            if self._master(f"@!{worker} {command.text}") == command.answer:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)

    def open_requests(self, service: str, replica: str) -> int:
        """Count the requests that a replica is working on, websockets and streams too.

        Args:
            service: The service.
            replica: The name of its replica.

        Returns:
            Their number, over the present configuration and earlier ones that still have connections.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        return sum(
            int(server["scur"])
            for servers in (self._current_servers(service), self._former_servers(service))
            for server in servers
            if server["svname"] == replica
        )

    def replica_health(self, service: str) -> dict[str, ReplicaHealth]:
        """Tell what the gateway thinks of a service's replicas.

        Args:
            service: The service.

        Returns:
            Their health by name.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        return {
            server["svname"]: ReplicaHealth(
                status=_status(server),
                check=" ".join(filter(None, map(server.get, ("check_desc", "check_code", "last_chk")))),
                since=float(server["lastchg"] or 0),
            )
            for server in self._current_servers(service)
        }

    def statistics(self, service: str) -> dict[str, ReplicaStatistics]:
        """Count what a service's replicas did.

        Args:
            service: The service.

        Returns:
            Their statistics by name; take two looks and `since` for what happened between them.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        process = self._current_worker()
        found: dict[str, ReplicaStatistics] = {}
        for server in self._servers(service, process):
            name = server["svname"]
            key = f"{backend(service)}/{name}"
            answer = self._master(f"@!{process} show table latency key {key}")
            counters = parse_table(answer).get(key, [0] * (len(latency.BUCKETS) + 1))
            found[name] = ReplicaStatistics(
                process=process,
                requests=sum(counters[:-1]),
                server_errors=counters[-1],
                connection_errors=int(server["econ"] or 0),
                response_errors=int(server["eresp"] or 0),
                durations=tuple(counters[:-1]),
            )
        return found

    def _current_servers(self, service: str) -> list[dict[str, str]]:
        return self._servers(service, self._current_worker())

    def _former_servers(self, service: str) -> Iterator[dict[str, str]]:
        """List a backend's servers in processes of earlier configurations; they may end at any moment."""
        for worker in self._workers().old:
            for _ in range(FORMER_PATIENCE):
                try:
                    yield from self._servers(service, worker)
                    break
                except GatewayError:
                    if worker not in self._workers().old:
                        break
            else:
                raise GatewayError(
                    f"{self.place.name}: process {worker} of a former configuration does not answer"
                )

    def _servers(self, service: str, worker: int) -> list[dict[str, str]]:
        answer = self._master(f"@!{worker} show stat {backend(service)} 4 -1")
        return [server for server in parse_statistics(answer) if server.get("svname")]

    def destroy(self) -> None:
        """Stop the gateway and remove all that is there of it."""
        self.place.destroy()


def _ports(state: GatewayState) -> list[int]:
    return [*state.http_ports, *([state.https_port] if state.https_port else [])]


def _status(server: Mapping[str, str]) -> Literal["UP", "DOWN", "DRAIN"]:
    if not server["status"].startswith(("UP", "no check")):
        return "DOWN"
    return "UP" if int(server["weight"]) else "DRAIN"
