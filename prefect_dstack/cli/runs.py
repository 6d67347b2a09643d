"""Tasks and development environments on the command line: run, attach, stop."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.output import can_ask, confirm, connected, err, out, print_json, show_table
from prefect_dstack.cli.schedules import end_schedule
from prefect_dstack.errors import ConflictError, NotFoundError, UserError

if TYPE_CHECKING:
    from prefect_dstack.cli.options import ApplyOptions
    from prefect_dstack.configurations import (
        DevEnvironmentConfiguration,
        PortMapping,
        TaskConfiguration,
    )
    from prefect_dstack.domain.run_record import RunRecord
    from prefect_dstack.hosts.forwarding import Forwarder
    from prefect_dstack.infrastructure.infrastructure import Infrastructure
    from prefect_dstack.infrastructure.observation import FoundReplica
    from prefect_dstack.runtimes.entering import Entrance
    from prefect_dstack.services.runs.names import Runnable
    from prefect_dstack.services.runs.overview import RunOverview

__all__ = ["apply_dev_environment", "apply_task", "attach", "is_run", "parse_artifacts", "show_runs"]

POLL = 0.2
# Seconds within which a background process begins its run.
BEGIN_TIMEOUT = 120.0


def apply_task(configuration: TaskConfiguration, options: ApplyOptions) -> None:
    """Run a task, stream its log, forward its ports, and exit as it does.

    With JSON, the log goes to standard error.

    Args:
        configuration: The task; it has a name.
        options: How.
    """
    if not confirm(f"Run {configuration.name}?", options.yes):
        raise typer.Exit(2)
    _apply(configuration, options)


def apply_dev_environment(configuration: DevEnvironmentConfiguration, options: ApplyOptions) -> None:
    """Start a development environment, stream its log, say how it is entered, and forward its ports.

    Args:
        configuration: The development environment; it has a name.
        options: How.
    """
    if not confirm(f"Start {configuration.name}?", options.yes):
        raise typer.Exit(2)
    _apply(configuration, options)


def _apply(configuration: Runnable, options: ApplyOptions) -> None:
    from prefect_dstack.cli.background import start
    from prefect_dstack.settings import settings

    name = configuration.name or ""
    connected()
    from prefect_dstack.services.runs.names import refuse_running
    from prefect_dstack.store.run_records import find_run

    refuse_running(name)
    end_schedule(name)
    if not options.detach:
        from prefect_dstack.hosts.forwarding import check_local_ports

        check_local_ports(_all_ports(configuration))
    earlier = find_run(name)
    before = 0 if earlier is None else earlier.number
    log = settings().home / "runs" / f"{name}.log"
    process, output = start(configuration, dict(options.artifacts), log)
    if options.detach:
        record = _begun(name, before, process)
        if record is None:
            sys.stdout.buffer.write(output.read())
            sys.stdout.buffer.flush()
            raise typer.Exit(process.returncode or 1)
        if options.json:
            _print_run(name, before)
        else:
            out.print(f"{record.name} (run {record.number}) goes on")
            out.print(f"follow it with: prefect-dstack attach {record.name}")
        return
    with output, _printing(output, sys.stderr.buffer if options.json else sys.stdout.buffer):
        code = _accompany(configuration, before, process)
    if options.json:
        _print_run(name, before)
    raise typer.Exit(code)


def _print_run(name: str, before: int) -> None:
    """Print the record of a run that has begun as JSON; of one that never did, nothing."""
    from prefect_dstack.store.run_records import find_run

    record = find_run(name)
    if record is not None and record.number > before:
        kept = {"kind", "name", "number", "state", "exit_code", "reason", "nodes", "created_at", "ended_at"}
        print_json(record.model_dump(mode="json", include=kept))


def parse_artifacts(pairs: Sequence[str]) -> dict[str, str]:
    """Read what `--artifact` says.

    Args:
        pairs: Each PATH=LOCAL.

    Returns:
        Local paths by those in the task.

    Raises:
        UserError: If one is not of that form.
    """
    parsed = {}
    for pair in pairs:
        path, _, local = pair.partition("=")
        if not path or not local:
            raise UserError(f"--artifact {pair}: write PATH=LOCAL")
        parsed[path] = local
    return parsed


def _accompany(configuration: Runnable, before: int, process: subprocess.Popen[bytes]) -> int:
    """Forward ports while something runs; on Ctrl-C, detach from it or stop it."""
    name = configuration.name or ""
    forwarders: contextlib.ExitStack | None = None
    try:
        while process.poll() is None:
            if forwarders is None and (_all_ports(configuration) or configuration.type != "task"):
                forwarders = _forwarded(name, before)
            time.sleep(POLL)
    except KeyboardInterrupt:
        if _wants_to_detach(name):
            err.print(f"{name} goes on; prefect-dstack attach {name} follows it", style="dim")
            return 0
        _stop(name, before, process)
        return 130
    except SystemExit:
        # The terminal is gone, or whoever started us: there is nobody to ask whether it is to end.
        err.print(f"{name} goes on; prefect-dstack stop {name} ends it", style="dim")
        raise
    except ConflictError:
        _stop(name, before, process)
        raise
    finally:
        if forwarders is not None:
            forwarders.close()
    return process.returncode


def _wants_to_detach(name: str) -> bool:
    if not can_ask():
        return False
    with contextlib.suppress(KeyboardInterrupt):
        answer = out.input(f"\nStop {name}, or detach from it? [s/d] ", markup=False)
        return answer.strip().lower() in ("d", "detach")
    return False


def _all_ports(configuration: Runnable) -> list[PortMapping]:
    """Return the ports of all nodes."""
    from prefect_dstack.domain.task_nodes import plan_nodes

    return [port for node in plan_nodes(configuration) for port in node.ports]


def _stop(name: str, before: int, process: subprocess.Popen[bytes]) -> None:
    """Stop a run that a background process takes care of, and wait for that; a second Ctrl-C waits on."""
    from prefect_dstack.flows.stop_run import stop_run
    from prefect_dstack.store.run_records import find_run

    with _patiently():
        record = find_run(name)
        if record is not None and record.number > before:
            stop_run(name)
        else:
            process.terminate()
        process.wait()


@contextlib.contextmanager
def _patiently() -> Iterator[None]:
    """Ignore further Ctrl-C while what runs is being removed."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _begun(name: str, before: int, process: subprocess.Popen[bytes]) -> RunRecord | None:
    from prefect_dstack.store.run_records import find_run

    deadline = time.monotonic() + BEGIN_TIMEOUT
    while time.monotonic() < deadline:
        record = find_run(name)
        if record is not None and record.number > before:
            return record
        if process.poll() is not None:
            return None
        time.sleep(POLL)
    return None


def _forwarded(name: str, before: int) -> contextlib.ExitStack | None:
    """Return what forwards a run's ports to 127.0.0.1; None while it does not run yet."""
    from prefect_dstack.store.run_records import find_run

    record = find_run(name)
    if record is None or record.number <= before or record.state != "running":
        return None
    from prefect_dstack.domain.task_nodes import plan_nodes
    from prefect_dstack.services.runs.entering import entrance_of_found
    from prefect_dstack.store.sources import resolve_infrastructure

    loaded = _configuration(record)
    infrastructure = resolve_infrastructure()
    observation = infrastructure.observe(name, [record.runtime])
    forwarders = contextlib.ExitStack()
    with forwarders:
        for node in plan_nodes(loaded):
            found = observation.of(f"{name}-{record.number}-{node.rank}")
            if found is None:
                continue
            entrance = None
            if record.kind == "dev-environment":
                entrance = entrance_of_found(found, infrastructure)
                try:
                    forwarders.enter_context(entrance.staying())
                except (NotFoundError, OSError):
                    return None  # it is being removed
            # A process listens on the port itself: nothing has to lead to what is there already.
            ports = [
                port
                for port in node.ports
                if record.runtime == "docker" or port.local_port != port.container_port
            ]
            if ports:
                forwarder = forwarders.enter_context(_forward(infrastructure, found, ports, entrance))
                for forwarded in forwarder.ports:
                    err.print(
                        f"127.0.0.1:{forwarded.local_port} leads to port {forwarded.container_port} of "
                        f"{found.replica.name}"
                    )
        return forwarders.pop_all()


def _configuration(record: RunRecord) -> Runnable:
    from prefect_dstack.configurations import (
        DevEnvironmentConfiguration,
        TaskConfiguration,
        load_configuration,
    )

    loaded = load_configuration(record.configuration, name=record.name, directory=record.directory)
    if not isinstance(loaded, (TaskConfiguration, DevEnvironmentConfiguration)):
        raise AssertionError  # pragma: no cover - nothing else has such a record
    return loaded


def _forward(
    infrastructure: Infrastructure,
    found: FoundReplica,
    ports: list[PortMapping],
    entrance: Entrance | None,
) -> Forwarder:
    """Forward ports; into a development environment as its own programs reach them, as over SSH."""
    from prefect_dstack.hosts.forwarding import Forwarder

    replica = found.replica
    if entrance is not None:
        return Forwarder(
            infrastructure.machine(found.instance),
            ports,
            connect=lambda port: entrance.open_connection("localhost", port),
        )
    return Forwarder(
        infrastructure.machine(found.instance),
        ports,
        target=lambda port: (replica.address, replica.ports.get(port, port)),
    )


def is_run(name: str) -> bool:
    """Return whether a name is that of a task or a development environment.

    Args:
        name: What the user has typed.
    """
    from prefect_dstack.store.records import find_record
    from prefect_dstack.store.run_records import find_run

    return find_record(name) is None and find_run(name) is not None


def show_runs(runs: Sequence[RunOverview]) -> None:
    """Print a table of tasks and development environments, if there are any.

    Args:
        runs: How they are.
    """
    if runs:
        show_table(
            ["RUN", "KIND", "STATE", "NODES", "PROBLEMS"],
            [
                [run.name, run.kind, run.state, f"{run.running}/{run.wanted}", "; ".join(run.problems)]
                for run in runs
            ],
        )


def attach(name: Annotated[str, typer.Argument(help="The task or dev environment.")]) -> None:
    """Follow a task or dev environment that runs: its log, and its ports on 127.0.0.1."""
    connected()
    from prefect_dstack.store.run_records import load_run
    from prefect_dstack.store.sources import resolve_infrastructure

    record = load_run(name)
    if record.is_over:
        raise ConflictError(f"{name}: has ended ({record.state}); prefect-dstack apply runs it again")
    infrastructure = resolve_infrastructure()
    found = infrastructure.observe(name, [record.runtime]).found
    forwarders = _forwarded(name, 0)
    lines: list[threading.Thread] = []
    try:
        for item in found:
            prefix = f"[{item.replica.stamp.replica}] " if len(found) > 1 else ""
            thread = threading.Thread(target=_print_log, args=(infrastructure, item, prefix), daemon=True)
            thread.start()
            lines.append(thread)
        if record.kind == "dev-environment" and record.state == "running":
            _say_how_to_enter(record, infrastructure)
        while any(thread.is_alive() for thread in lines):
            time.sleep(POLL)
    except KeyboardInterrupt:
        err.print(f"{name} goes on", style="dim")
        return
    finally:
        if forwarders is not None:
            forwarders.close()
    raise typer.Exit(_exit_code(name))


def _say_how_to_enter(record: RunRecord, infrastructure: Infrastructure) -> None:
    from prefect_dstack.configurations import DevEnvironmentConfiguration
    from prefect_dstack.domain.dev_environments import how_to_enter
    from prefect_dstack.services.runs.entering import entrance_of

    configuration = _configuration(record)
    if isinstance(configuration, DevEnvironmentConfiguration):
        directory = entrance_of(record, infrastructure).working_directory()
        for line in how_to_enter(configuration, directory):
            err.print(line, markup=False)


def _exit_code(name: str) -> int:
    from prefect_dstack.store.run_records import load_run

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        record = load_run(name)
        if record.is_over:
            return record.exit_code or 0
        time.sleep(POLL)
    return 1


def _print_log(infrastructure: Infrastructure, item: FoundReplica, prefix: str) -> None:
    runtime = infrastructure.runtime(item.instance, item.replica.runtime)
    machine = infrastructure.machine(item.instance)
    for line in runtime.logs(machine, item.replica, follow=True):
        print(f"{prefix}{line}", flush=True)  # noqa: T201


@contextlib.contextmanager
def _printing(written: IO[bytes], output: IO[bytes]) -> Iterator[None]:
    """Print what a background process writes, to its last line."""
    ended = threading.Event()

    def copy() -> None:
        while True:
            last = ended.is_set()
            data = written.read()
            if data:
                output.write(data)
                output.flush()
            elif last:
                return
            else:
                time.sleep(POLL / 2)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)
