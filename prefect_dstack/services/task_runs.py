"""Tasks and development environments: provisioned, run to their end, and taken down whatever happens."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.bundles import Bundle
from prefect_dstack.configurations import (
    DevEnvironmentConfiguration,
    NodeFacts,
    TaskConfiguration,
    resolve_commands,
    resolve_environment,
    resolve_registry_auth,
)
from prefect_dstack.controller.convergence import Log
from prefect_dstack.controller.goal import DEFAULT_GRACE
from prefect_dstack.domain.dev_environments import environment_commands
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.placement import place
from prefect_dstack.domain.record import Deploying, now
from prefect_dstack.domain.retrying import capacity_timeout
from prefect_dstack.domain.run_record import RunRecord, RunResult
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.task_nodes import (
    NodePlan,
    RunOutcome,
    node_facts,
    plan_nodes,
    run_outcome,
    start_waves,
)
from prefect_dstack.domain.workload import Requirements, WorkloadSpec, requirements_of, workload_spec
from prefect_dstack.errors import (
    CapacityError,
    ConflictError,
    HostError,
    HostUnreachableError,
    NoRoomError,
    NotFoundError,
    RunFailedError,
)
from prefect_dstack.hosts.ssh_entry import remove_entry
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus
from prefect_dstack.services.bundles import bundle_of, holding_bundle, prune_bundles
from prefect_dstack.services.dev_environments import Stay
from prefect_dstack.services.entering import entrance_of_found
from prefect_dstack.services.images import default_image
from prefect_dstack.services.preparation import this_user
from prefect_dstack.store.locks import lock
from prefect_dstack.store.records import find_record
from prefect_dstack.store.run_records import find_run, save_run
from prefect_dstack.store.runs import close_run, deploying, has_died
from prefect_dstack.tasks.replicas import (
    launch_replica,
    provision_instance,
    remove_replica,
    terminate_instance,
)

__all__ = ["Runnable", "begin_run", "holding_name", "refuse_running", "remove_run", "run_nodes"]

Runnable = TaskConfiguration | DevEnvironmentConfiguration

# Seconds that a run waits for another one which begins under the same name.
PATIENCE = 10.0

POLL = 0.3
# A host may be silent for so long before its node counts as lost.
SILENCE = 60.0
RETRY_PAUSE = 10.0
# How often a run asks whether somebody has stopped it.
STOP_INTERVAL = 2.0
# Seconds for the last lines of nodes that have ended.
LAST_LINES = 10.0

_T = TypeVar("_T")
STOPPED = RunOutcome(130, "it was stopped")


@dataclass
class _Node:
    """One node on its way."""

    plan: NodePlan
    stamp: Stamp
    instance: Instance | None = None
    replica: Replica | None = None
    exit_code: int | None = None
    gone: bool = False
    out_of_memory: bool = False
    silent_since: float | None = None
    lines: threading.Thread | None = field(default=None, repr=False)


def begin_run(
    configuration: Runnable, infrastructure: Infrastructure, flow_run: str, lease: str
) -> RunRecord:
    """Return the record of a new run, saved; what an earlier one of that name has left is removed.

    Args:
        configuration: The task or the development environment; it has a name.
        infrastructure: Where it is to run.
        flow_run: The id of the flow run.
        lease: The id of the lease with which it holds the lock of the name.

    Raises:
        ConflictError: If a service has the name, or a run of that name goes on.
    """
    name = configuration.name or ""
    refuse_running(name)
    before = find_run(name)
    if before is not None:
        if before.working is not None:
            close_run(before.working.flow_run)
        remove_run(before, infrastructure)
    runtime = runtime_of(configuration)
    record = RunRecord(
        kind=configuration.type,
        name=name,
        number=1 if before is None else before.number + 1,
        configuration=configuration.model_dump(mode="json", exclude_unset=True)
        | {"type": configuration.type},
        directory=str(configuration.directory),
        runtime=runtime,
        nodes=len(plan_nodes(configuration)),
        flow_run=flow_run,
        created_at=now(),
        created_by=this_user(),
        working=deploying(None, flow_run, lease),
        location=infrastructure.here if runtime == "process" else None,
    )
    save_run(record)
    return record


def refuse_running(name: str) -> None:
    """Refuse a name that something else has, which goes on.

    Args:
        name: The name of a task or a development environment.

    Raises:
        ConflictError: If a service has the name, or a run of that name goes on.
    """
    if find_record(name) is not None:
        raise ConflictError(f"{name}: is the name of a service; choose another")
    record = find_run(name)
    if record is None or record.is_over:
        return
    if record.working is not None and has_died(record.working):
        return
    where = "" if record.working is None else f", in flow run {record.working.flow_run}"
    raise ConflictError(f"{name}: runs already{where}; stop it first: prefect-dstack stop {name}")


@contextlib.contextmanager
def holding_name(name: str, flow_run: str, log: Log) -> Iterator[str]:
    """Hold the name of a task or a development environment: nobody else runs anything under it meanwhile.

    Args:
        name: The name.
        flow_run: The id of the flow run.
        log: Told when it has to wait.

    Yields:
        The id of the lease with which it is held.

    Raises:
        ConflictError: If something else runs under it.
    """

    def holder() -> Deploying | None:
        record = find_run(name)
        return None if record is None else record.working

    refuse_running(name)
    with contextlib.ExitStack() as held:
        try:
            lease = held.enter_context(lock(f"run-{name}", flow_run, holder, log.info, PATIENCE))
        except TimeoutError:
            raise ConflictError(
                f"{name}: another flow run works on it; wait for it, or stop it: prefect-dstack stop {name}"
            ) from None
        yield lease


def remove_run(record: RunRecord, infrastructure: Infrastructure) -> None:
    """Remove every node of a run with its SSH entry, and give its machines back.

    Args:
        record: The record of the run.
        infrastructure: Where its nodes are.
    """
    found = infrastructure.observe(record.name, [record.runtime])
    for item in found.found:
        remove_replica(infrastructure, item, DEFAULT_GRACE)
    instances = [item.instance for item in found.found] + [instance for instance, _ in found.empty]
    for instance in instances:
        if infrastructure.is_owned(instance):
            terminate_instance(infrastructure, instance)
    remove_entry(record.name, infrastructure.home)


def run_nodes(
    configuration: Runnable,
    record: RunRecord,
    infrastructure: Infrastructure,
    flow_run: str,
    log: Log,
    *,
    artifacts: Mapping[str, Path] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> RunResult:
    """Run a task or a development environment to its end, and remove every trace of it.

    Args:
        configuration: What to run.
        record: Its record, saved.
        infrastructure: Where it runs.
        flow_run: Stamped on what is created.
        log: Told of progress.
        artifacts: What is copied back when it has succeeded: local paths by those in the master node.
        on_line: Given each line that a node writes; default: the log.

    Returns:
        How it ended. A development environment that was stopped has succeeded.

    Raises:
        RunFailedError: If it ended with another exit code than 0, took too long, or was a task that was
            stopped.
        NoOfferError: If no machine has what it asks for.
    """
    began = time.monotonic()
    is_here = isinstance(configuration, DevEnvironmentConfiguration) and configuration.image is None
    # Who works on files wants to find them again.
    bundle = None if is_here else bundle_of(configuration, infrastructure)
    run = _Run(configuration, record, infrastructure, flow_run, log, bundle, on_line or log.info)
    limit = configuration.max_duration
    deadline = None if limit in (None, "off") else began + float(limit)
    copied: list[str] = []
    try:
        with holding_bundle(bundle, infrastructure.bundles):
            outcome = run.to_its_end(deadline)
        if outcome.exit_code == 0 and artifacts:
            copied = run.bring_back(artifacts)
    except BaseException as error:
        run.finish("failed", getattr(error, "exit_code", 1), str(error) or type(error).__name__)
        raise
    finally:
        run.remove()
        if bundle is not None:
            with contextlib.suppress(Exception):  # the next reconcile removes them, too
                prune_bundles(infrastructure)
    run.conclude(outcome, time.monotonic() - began)
    return RunResult(
        name=record.name,
        number=record.number,
        exit_code=run.record.exit_code or 0,
        seconds=time.monotonic() - began,
        artifacts=copied,
    )


class _Run:
    """One run of a task or a development environment."""

    def __init__(
        self,
        configuration: Runnable,
        record: RunRecord,
        infrastructure: Infrastructure,
        flow_run: str,
        log: Log,
        bundle: Bundle | None,
        on_line: Callable[[str], None],
    ) -> None:
        self.configuration, self.record, self.infrastructure = configuration, record, infrastructure
        self.log, self.bundle, self.on_line = log, bundle, on_line
        self.stopped = False
        self.stay = (
            Stay(configuration, infrastructure, log)
            if isinstance(configuration, DevEnvironmentConfiguration)
            else None
        )
        self.nodes = [
            _Node(
                plan,
                Stamp(service=record.name, revision=record.number, replica=plan.rank, flow_run=flow_run),
            )
            for plan in plan_nodes(configuration)
        ]
        self._lines: queue.Queue[str] = queue.Queue(maxsize=10_000)

    def to_its_end(self, deadline: float | None) -> RunOutcome:
        self._with_retries(self._provision)
        for wave in start_waves([node.plan for node in self.nodes], self.configuration.startup_order):
            if self._is_stopped():
                return STOPPED
            ranks = {plan.rank for plan in wave}
            self._at_once(self._launch, [node for node in self.nodes if node.plan.rank in ranks])
        if self._is_stopped():
            return STOPPED
        if self.stay is None:
            self._is_running()
        for node in self.nodes:
            node.lines = threading.Thread(target=self._read, args=(node,), daemon=True)
            node.lines.start()
        try:
            return self._wait(deadline)
        finally:
            self._flush(LAST_LINES)

    def _is_running(self) -> None:
        self.record = self.record.model_copy(update={"state": "running"})
        save_run(self.record)

    def _with_retries(self, action: Callable[[], None]) -> None:
        duration = capacity_timeout(self.configuration.retry)
        began = time.monotonic()
        while True:
            try:
                action()
            except (CapacityError, NoRoomError) as error:
                if time.monotonic() - began >= duration or self._is_stopped():
                    raise
                self.log.warning("%s: %s; trying again in %.0f s", self.record.name, error, RETRY_PAUSE)
                time.sleep(RETRY_PAUSE)
            else:
                return

    def _provision(self) -> None:
        waiting = [node for node in self.nodes if node.instance is None]
        groups: dict[int | None, list[_Node]] = {}
        for node in waiting:
            groups.setdefault(node.plan.group, []).append(node)
        chosen: list[tuple[_Node, Sequence[Offer]]] = []
        for nodes in groups.values():
            needs = self._needs(nodes[0])
            chosen += zip(nodes, place(self.infrastructure.offers(needs), len(nodes)), strict=True)

        def provision(pair: tuple[_Node, Sequence[Offer]]) -> None:
            node, offers = pair
            needs = self._needs(node)
            node.instance = provision_instance(self.infrastructure, offers, node.stamp, needs)

        self._at_once(provision, chosen)

    def _launch(self, node: _Node) -> None:
        if node.instance is None:
            raise NotFoundError(f"{node.stamp.name}: has no machine")
        launch = Launch(stamp=node.stamp, spec=self._spec(node, self._addresses()))
        node.replica = launch_replica(self.infrastructure, node.instance, launch)

    def _addresses(self) -> list[str]:
        return [
            (node.instance.private_address or node.instance.address) if node.instance else "127.0.0.1"
            for node in self.nodes
        ]

    def _needs(self, node: _Node) -> Requirements:
        return requirements_of(self.configuration.model_copy(update={"resources": node.plan.resources}))

    def _spec(self, node: _Node, addresses: Sequence[str]) -> WorkloadSpec:
        """Return what a node runs, now that the addresses of all are known."""
        plan, configuration, lookup = node.plan, self.configuration, self.infrastructure.sources.secret
        facts = self._facts(node, addresses)
        spec = workload_spec(
            configuration.model_copy(update={"resources": plan.resources}),
            port=None,
            commands=self._commands(facts, plan),
            environment=resolve_environment(configuration, lookup, os.environ, facts),
            registry=resolve_registry_auth(configuration, lookup, os.environ),
            default_image=default_image(configuration),
            bundle="" if self.bundle is None else self.bundle.digest,
        )
        gpus = [len(it.instance.gpu_devices) if it.instance else 0 for it in self.nodes]
        return spec.model_copy(
            update={
                "ports": tuple(port.container_port for port in plan.ports),
                "restart": False,
                "host_network": len(self.nodes) > 1 and spec.runtime == "docker",
                "facts": node_facts(plan.rank, addresses, gpus),
            }
        )

    def _commands(self, facts: NodeFacts, plan: NodePlan) -> tuple[str, ...]:
        if isinstance(self.configuration, DevEnvironmentConfiguration):
            return environment_commands(self.configuration)
        return resolve_commands(self.configuration, facts, plan.group)

    def _facts(self, node: _Node, addresses: Sequence[str]) -> NodeFacts:
        groups: dict[int, list[str]] = {}
        for it, address in zip(self.nodes, addresses, strict=True):
            groups.setdefault(it.plan.group or 0, []).append(address)
        return NodeFacts(
            node_rank=node.plan.rank,
            job_num=node.plan.rank,
            nodes_num=len(self.nodes),
            master_node_ip=addresses[0],
            addresses=tuple(tuple(groups[number]) for number in sorted(groups)),
        )

    def _wait(self, deadline: float | None) -> RunOutcome:
        asked = time.monotonic()
        while True:
            for node in self.nodes:
                self._look_at(node)
            self._pass_on()
            outcome = self._outcome() or self._staying()
            # Nodes that are being stopped end too, some with exit code 0: who stops them records it first.
            if outcome is not None or time.monotonic() - asked > STOP_INTERVAL:
                asked = time.monotonic()
                if self._is_stopped():
                    return STOPPED
            if outcome is not None:
                return outcome
            if deadline is not None and time.monotonic() > deadline:
                # For a development environment that is its planned end.
                return RunOutcome(
                    124 if self.stay is None else 0,
                    f"it ran for longer than max_duration, {self.configuration.max_duration} s",
                )
            time.sleep(POLL)

    def _outcome(self) -> RunOutcome | None:
        lost = [node.stamp.name for node in self.nodes if node.gone]
        if lost:
            return RunOutcome(1, f"{lost[0]} was removed by somebody else, or its machine is gone")
        codes = {node.plan.rank: node.exit_code for node in self.nodes}
        outcome = run_outcome(
            codes, [node.stamp.name for node in self.nodes], self.configuration.stop_criteria
        )
        if outcome is not None and any(node.out_of_memory for node in self.nodes):
            return RunOutcome(outcome.exit_code, f"{outcome.reason}, out of memory: raise resources.memory")
        if outcome is not None and self.stay is not None and not self.stay.is_ready:
            reason = outcome.reason or f"{self.nodes[0].stamp.name} ended"
            return RunOutcome(outcome.exit_code or 1, f"'init' did not come to its end: {reason}")
        return outcome

    def _staying(self) -> RunOutcome | None:
        """Look after a development environment; returns how it ends once nobody uses it any more."""
        node = self.nodes[0]
        if self.stay is None or node.instance is None or node.replica is None or node.silent_since:
            return None
        found = FoundReplica(node.instance, node.replica, ReplicaStatus(state="running"))
        if self.record.state == "running":
            return self.stay.look(entrance_of_found(found, self.infrastructure))
        if node.lines is not None and not node.lines.is_alive():
            # Its log was cut off with the connection to its machine.
            self._read(node, follow=False)
        if self.stay.is_ready and not self._is_stopped():
            try:
                directory = entrance_of_found(found, self.infrastructure).working_directory()
            except HostUnreachableError:
                return None  # it may be back in a moment
            self.stay.begin()
            if self._is_stopped():
                return STOPPED
            self._is_running()
            self.stay.announce(directory)
        return None

    def _is_stopped(self) -> bool:
        fresh = find_run(self.record.name)
        self.stopped = fresh is not None and fresh.state in ("stopping", "stopped")
        return self.stopped

    def _look_at(self, node: _Node) -> None:
        if node.exit_code is not None or node.instance is None or node.replica is None:
            return
        try:
            runtime = self.infrastructure.runtime(node.instance, node.replica.runtime)
            status = runtime.status(self.infrastructure.machine(node.instance), node.replica)
        except HostError as error:
            node.silent_since = node.silent_since or time.monotonic()
            if time.monotonic() - node.silent_since > SILENCE:
                self.log.error("%s: its machine is silent: %s", node.stamp.name, error)
                node.gone = True
            return
        node.silent_since = None
        if status.state == "gone":
            node.gone = True
        elif status.state == "exited":
            node.exit_code = 137 if status.out_of_memory else status.exit_code
            node.out_of_memory = status.out_of_memory
            # What supervised it was killed with it: nobody knows whether it has succeeded.
            node.gone = node.exit_code is None

    def _read(self, node: _Node, *, follow: bool = True) -> None:
        if node.instance is None or node.replica is None:
            return
        prefix = f"[{node.plan.rank}] " if len(self.nodes) > 1 else ""
        with contextlib.suppress(HostError):
            runtime = self.infrastructure.runtime(node.instance, node.replica.runtime)
            machine = self.infrastructure.machine(node.instance)
            for line in runtime.logs(machine, node.replica, follow=follow, tail=None if follow else 100):
                if self.stay is not None:
                    self.stay.read(line)
                if follow:
                    self._lines.put(f"{prefix}{line}")

    def _pass_on(self) -> None:
        # A node that never stops writing must not keep us from looking at the clock.
        with contextlib.suppress(queue.Empty):
            for _ in range(self._lines.maxsize):
                self.on_line(self._lines.get_nowait())

    def _flush(self, patience: float) -> None:
        until = time.monotonic() + patience
        ended = [node.lines for node in self.nodes if node.lines is not None and node.exit_code is not None]
        while any(thread.is_alive() for thread in ended) and time.monotonic() < until:
            self._pass_on()
            time.sleep(POLL / 10)
        self._pass_on()

    def bring_back(self, artifacts: Mapping[str, Path]) -> list[str]:
        node = self.nodes[0]
        if node.instance is None or node.replica is None:
            return []
        runtime = self.infrastructure.runtime(node.instance, node.replica.runtime)
        machine = self.infrastructure.machine(node.instance)
        copied = []
        for path, target in artifacts.items():
            runtime.copy_back(machine, node.replica, path, target)
            self.log.info("%s: copied %s to %s", self.record.name, path, target)
            copied.append(str(target))
        return copied

    def remove(self) -> None:
        for node in self.nodes:
            if node.instance is None:
                continue
            if node.replica is not None:
                found = FoundReplica(node.instance, node.replica, ReplicaStatus(state="exited"))
                remove_replica(self.infrastructure, found, DEFAULT_GRACE)
            if self.infrastructure.is_owned(node.instance):
                terminate_instance(self.infrastructure, node.instance)
        if self.stay is not None:
            self.stay.end()

    def conclude(self, outcome: RunOutcome, seconds: float) -> None:
        """Write down how the run has ended; raises what is a failure."""
        name = f"{self.record.name} (run {self.record.number})"
        if self.stay is not None and (self.stopped or outcome.exit_code == 0):
            self.finish("stopped", 0, outcome.reason)
            self.log.info("%s: stopped: %s", name, outcome.reason)
            return
        if self.stopped:
            self.finish("stopped", outcome.exit_code, "it was stopped")
            raise RunFailedError(f"{name}: was stopped", 130)
        self.finish("done" if outcome.exit_code == 0 else "failed", outcome.exit_code, outcome.reason)
        if outcome.exit_code != 0:
            raise RunFailedError(f"{name}: {outcome.reason}", outcome.exit_code)
        self.log.info("%s: done after %.1f s", name, seconds)

    def finish(self, state: str, exit_code: int, reason: str) -> None:
        first = reason.splitlines()[0] if reason else ""
        self.record = self.record.model_copy(
            update={
                "state": state,
                "exit_code": exit_code,
                "reason": first,
                "ended_at": now(),
                "working": None,
            }
        )
        save_run(self.record)

    def _at_once(self, action: Callable[[_T], None], items: Sequence[_T]) -> None:
        """Do something for several nodes at once; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(max(1, len(items))) as pool:
            done = [pool.submit(copy_context().run, action, item) for item in items]
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            raise max(failures, key=lambda error: int(getattr(error, "exit_code", 0)))
