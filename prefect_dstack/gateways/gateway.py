"""A gateway: one desired state, and an HAProxy that always runs what is on disk."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from prefect_dstack.errors import CertificateError, ConflictError, GatewayError, HostError, NotFoundError
from prefect_dstack.gateways.changes import DELETE, Command, changes
from prefect_dstack.gateways.counters import Departed, ProcessSample, Row, departed_with, read_departed
from prefect_dstack.gateways.handover import FAILING, NONE_FAILING, failing
from prefect_dstack.gateways.latency import Tally
from prefect_dstack.gateways.look import GatewayLook
from prefect_dstack.gateways.observation import ReplicaHealth, ReplicaStatistics
from prefect_dstack.gateways.place import Place
from prefect_dstack.gateways.runtime import (
    Workers,
    ask,
    parse_durations,
    parse_held,
    parse_statistics,
    parse_workers,
)
from prefect_dstack.gateways.servers import SUCCESSOR, backend, service_of
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.gateways.template import CONFIGURATION, render

__all__ = ["Gateway"]

STATE = "state.json"
# What was counted for servers that HAProxy does not know any more.
DEPARTED = "departed.json"
# There while files and HAProxy may differ; whoever finds it reloads.
UNFINISHED = "unfinished"
PORT_ATTEMPTS = 3
ANSWER_TIMEOUT = 2.0
FORMER_PATIENCE = 5
RELOAD_TIMEOUT = 60.0
START_TIMEOUT = 20.0
LOG_TAIL = 50

Answer = TypeVar("Answer")

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


class Gateway:
    """Controls one gateway.

    Args:
        place: Where it lives.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        # What was read last, and what it is: with many services that takes most of the time of a look.
        self._parsed: tuple[bytes, GatewayState] | None = None

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
        known = self._parsed
        if known is not None and known[0] == data:
            return known[1]
        try:
            state = GatewayState.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise GatewayError(
                f"{self.place.name}: {STATE} cannot be read: {place}: {problem['msg']}; "
                "it was damaged, or written by another version of prefect-dstack"
            ) from None
        self._parsed = data, state
        return state

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
            if self.place.read(STATE) is None:
                self._create(initial_state)
                return initial_state
            state = self.state()
            if self._stale(state) or not self._ready():
                self._apply(state, state, stale=True)
        return state

    def ensure(
        self, initial_state: GatewayState, transition: Callable[[GatewayState], GatewayState]
    ) -> GatewayState:
        """Start the gateway if it does not run, and change its state, in one step.

        Nobody can take what the transition chooses, or remove the gateway, in between.

        Args:
            initial_state: What a new gateway begins with; an existing one keeps its state.
            transition: From the present state to the new one; it may raise.

        Returns:
            The new state, which runs.

        Raises:
            ConflictError: If another program listens on a port of the new state.
            GatewayError: If it cannot be started, or refuses the new state.
        """
        with self.place.lock():
            for _ in range(PORT_ATTEMPTS - 1):
                # A port that was free when it was chosen may be taken by now; then another is.
                with contextlib.suppress(ConflictError):
                    return self._ensure(initial_state, transition)
            return self._ensure(initial_state, transition)

    def _ensure(
        self, initial_state: GatewayState, transition: Callable[[GatewayState], GatewayState]
    ) -> GatewayState:
        if self.place.read(STATE) is None:
            state = transition(initial_state)
            self._create(state)
            return state
        old = self.state()
        new = transition(old)
        stale = self._stale(old)
        if new != old or stale or not self._ready():
            self._apply(old, new, stale or not self._ready())
        return new

    def change_or_destroy(
        self,
        transition: Callable[[GatewayState], GatewayState],
        obsolete: Callable[[GatewayState], bool],
    ) -> GatewayState:
        """Change the desired state; a gateway that is obsolete then is removed in the same step.

        Args:
            transition: From the present state to the new one.
            obsolete: Returns whether nobody needs a gateway with this state.

        Returns:
            The new state.

        Raises:
            NotFoundError: If there is no such gateway.
            GatewayError: If HAProxy refuses the new state; the old one goes on running.
        """
        with self.place.lock():
            old = self.state()
            new = transition(old)
            if obsolete(new):
                self.place.destroy()
                return new
            stale = self._stale(old)
            if new != old or stale:
                self._apply(old, new, stale)
        return new

    def _create(self, state: GatewayState) -> None:
        self._refuse_taken_ports(_ports(state), state)
        try:
            files = render(state)
            self._write(files, state)
            self.place.check(files[CONFIGURATION])
            self._start()
            self.place.remove(UNFINISHED)
        except (GatewayError, HostError):
            with contextlib.suppress(GatewayError, HostError):
                self.place.destroy()
            raise

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
            stale = self._stale(old)
            if new != old or stale:
                self._apply(old, new, stale)
        return new

    def is_unfinished(self) -> bool:
        """Return whether a change was cut off, so that HAProxy may not run what the state says."""
        if self.place.read(UNFINISHED) is None:
            return False
        with self.place.lock():  # somebody may be changing it
            return self.place.read(UNFINISHED) is not None

    def _stale(self, state: GatewayState) -> bool:
        """Return whether HAProxy may run something else: an unfinished change, or another version."""
        return (
            self.place.read(UNFINISHED) is not None
            or self.place.read(CONFIGURATION) != render(state)[CONFIGURATION]
        )

    def _apply(self, old: GatewayState, new: GatewayState, stale: bool) -> None:
        before, after = render(old), render(new)
        plan, ready = changes(old, new), self._ready()
        # Files that only the new configuration names can be there before it is; which the old one names
        # is not known when another version has written it.
        added = {
            name: data
            for name, data in after.items()
            if name not in before or (stale and self.place.read(name) is None)
        }
        if plan.reload or stale or not ready:
            self._refuse_taken_ports(set(_ports(new)) - set(_ports(old)), new)
            self.place.write(added)
            try:
                self.place.check(after[CONFIGURATION])
            except GatewayError:
                self._remove(added)
                raise
        self._write({name: data for name, data in after.items() if stale or before.get(name) != data}, new)
        try:
            if not ready:
                self._start()
            # One that was only slow to answer, or was starting already, has not read what is written now.
            if not ready or plan.reload or stale or not self._run(plan.commands):
                self._reload(new)
        except GatewayError:
            self._write(before, old)
            self._remove(added)
            raise
        self._remove((*(before.keys() - after.keys()), UNFINISHED))

    def _write(self, files: Mapping[str, bytes], state: GatewayState) -> None:
        described = state.model_dump_json(indent=1).encode() + b"\n"
        self.place.write({UNFINISHED: b"", **files, STATE: described})

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.place.remove(name)

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

    def _start(self) -> None:
        """Start HAProxy, or wait until its supervisor has brought it back."""
        self.place.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._ready():
            if time.monotonic() > deadline:
                lines = [line for line in self.place.log(tail=LOG_TAIL) if line.strip()]
                alerts = (
                    [line for line in lines if line.startswith("[ALERT]")] or lines or ["it wrote nothing"]
                )
                raise GatewayError(f"{self.place.name} did not start: {alerts[-1]}")
            time.sleep(0.02)

    def _reload(self, new: GatewayState) -> None:
        """Have HAProxy read its files anew; what it knows of the replicas' health goes on."""
        known = self._master(f"@!{self._current_worker()} show servers state")
        self.place.write({FAILING: failing(known, new).encode()})
        try:
            answer = self._ask("reload", RELOAD_TIMEOUT)
        finally:
            self.place.write({FAILING: NONE_FAILING.encode()})
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

    def _note_departure(self, worker: int, name: str) -> None:
        """Keep what was counted for a server, which HAProxy forgets with it."""
        its_backend, _, replica = name.partition("/")
        service = service_of(its_backend)
        lines = parse_statistics(self._master(f"@!{worker} show stat {its_backend} 4 -1"))
        counters = next((Row.of(line).counters for line in lines if line["svname"] == replica), {})
        if service is not None and any(counters.values()):
            workers = self._workers()
            alive = (*workers.current, *workers.old)
            known = self.place.read(DEPARTED)
            noted = departed_with(known, worker, alive, f"{service}/{replica}", counters)
            self.place.write({DEPARTED: noted})

    def _run_on(self, worker: int, command: Command) -> bool:
        if command.text.startswith(DELETE):
            self._note_departure(worker, command.text.removeprefix(DELETE))
        deadline = time.monotonic() + command.patience
        while True:
            if self._master(f"@!{worker} {command.text}") == command.answer:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)

    def open_requests(self, service: str) -> Counter[str]:
        """Count the requests that the replicas of a service are working on, websockets and streams too.

        Args:
            service: The service.

        Returns:
            Their number by replica, over the present configuration and earlier ones that still have
            connections.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        counted: Counter[str] = Counter()
        for servers in (
            self._current_servers(service),
            *self._of_former(lambda worker: self._servers(service, worker)),
        ):
            for server in servers:
                counted[server["svname"]] += int(server["scur"])
        return counted

    def replica_health(self, service: str) -> dict[str, ReplicaHealth]:
        """Return what the gateway thinks of a service's replicas.

        Args:
            service: The service.

        Returns:
            Their health by name.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        return {server["svname"]: ReplicaHealth.of(server) for server in self._current_servers(service)}

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
        durations = self._durations([service], process).get(service, {})
        return {
            server["svname"]: ReplicaStatistics.of(process, server, durations.get(server["svname"], {}))
            for server in self._servers(service, process)
        }

    def look(self) -> GatewayLook:
        """Return what all services have to bear now, and how their replicas are.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        process = self._current_worker()
        # 6: services and their replicas; 4: replicas.
        statistics = self._master(f"@!{process} show stat -1 6 -1")
        held = self._master(f"@!{process} show held")
        former = list(self._of_former(lambda worker: self._master(f"@!{worker} show stat -1 4 -1")))
        return GatewayLook.of(process, statistics, held, former)

    def samples(self) -> tuple[list[ProcessSample], Departed]:
        """Return what all processes have counted, and what they had counted for servers that are gone.

        Raises:
            GatewayError: If the gateway does not answer.
        """
        departed = read_departed(self.place.read(DEPARTED))  # first: it is written before a server goes
        current = self._workers().current
        samples = [self._sample(worker, current=True) for worker in current]
        # One that lives and does not answer is not left out: it would be taken for gone, and counted again.
        former = self._of_former(lambda worker: self._sample(worker, current=False))
        return [*samples, *(one for one in former if one.process not in current)], departed

    def _sample(self, worker: int, *, current: bool) -> ProcessSample:
        services: dict[str, Row] = {}
        replicas: dict[str, dict[str, Row]] = {}
        # 6: backends and their servers.
        for line in parse_statistics(self._master(f"@!{worker} show stat -1 6 -1")):
            service = service_of(line["pxname"] or "")
            if service is None:
                continue
            if line["svname"] == "BACKEND":
                services[service] = Row.of(line)
            else:
                replicas.setdefault(service, {})[line["svname"]] = Row.of(line)
        held = parse_held(self._master(f"@!{worker} show held"))
        busy = [
            service
            for service, row in services.items()
            if any(it.answered for it in (row, *replicas.get(service, {}).values()))
        ]
        return ProcessSample(worker, current, services, replicas, held, self._durations(busy, worker))

    def _durations(self, services: Sequence[str], worker: int) -> dict[str, dict[str, dict[int, Tally]]]:
        """Ask a process how long replicas took: tallies by service, replica and bucket."""
        tables = "".join(f"\nshow table durations/{service}" for service in services)
        return parse_durations(self._master(f"@!{worker}{tables}")) if tables else {}

    def _current_servers(self, service: str) -> list[dict[str, str]]:
        return self._servers(service, self._current_worker())

    def _of_former(self, question: Callable[[int], Answer]) -> Iterator[Answer]:
        """Query processes of earlier configurations; they may end at any moment."""
        for worker in self._workers().old:
            for _ in range(FORMER_PATIENCE):
                try:
                    yield question(worker)
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
        return [
            server for server in parse_statistics(answer) if server.get("svname") not in (None, "", SUCCESSOR)
        ]

    def install_certificate(self, name: str, pem: bytes) -> GatewayState:
        """Install a certificate, or renew the one of that name without a reload.

        Args:
            name: What it is called; its file is `certificates/NAME.pem`.
            pem: The private key, the certificate and its chain.

        Returns:
            The new state.

        Raises:
            CertificateError: If HAProxy cannot use it; what was there before goes on being used.
        """
        with self.place.lock():
            old = self.state()
            new, file = old.with_certificate(name), f"certificates/{name}.pem"
            before = self.place.read(file)
            self.place.write({file: pem})
            try:
                if name in old.certificates and not self._stale(old) and self._renew(file, pem):
                    return new
                self._apply(old, new, stale=True)
            except GatewayError as error:
                if before is None:
                    self.place.remove(file)
                else:
                    self.place.write({file: before})
                raise CertificateError(f"certificate '{name}' cannot be used: {error}") from error
        return new

    def _renew(self, file: str, pem: bytes) -> bool:
        worker = self._current_worker()
        lines = b"\n".join(line for line in pem.splitlines() if line.strip()).decode("ascii", "replace")
        self._master(f"@!{worker} set ssl cert {file} <<\n{lines}\n")
        if "Success" in self._master(f"@!{worker} commit ssl cert {file}"):
            return True
        self._master(f"@!{worker} abort ssl cert {file}")
        return False

    def certificate(self, name: str) -> bytes | None:
        """Read an installed certificate.

        Args:
            name: What it is called.

        Returns:
            Certificate and chain, PEM, without the private key; None if there is none of that name.
        """
        pem = self.place.read(f"certificates/{name}.pem") if name in self.state().certificates else None
        return None if pem is None else b"".join(_CERTIFICATE.findall(pem))

    def destroy(self) -> None:
        """Stop the gateway and remove all that is there of it."""
        with self.place.lock():
            self.place.destroy()


def _ports(state: GatewayState) -> list[int]:
    return [*state.http_ports, *state.https_ports]
