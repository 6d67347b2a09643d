"""Tasks: provisioned, run to their end, and taken down whatever happens."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.bundles import Bundle
from prefect_dstack.configurations import (
    NodeFacts,
    TaskConfiguration,
    resolve_commands,
    resolve_environment,
    resolve_registry_auth,
)
from prefect_dstack.controller.convergence import Log
from prefect_dstack.controller.goal import DEFAULT_GRACE
from prefect_dstack.domain.placement import place
from prefect_dstack.domain.record import now
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
from prefect_dstack.errors import CapacityError, ConflictError, HostError, NotFoundError, RunFailedError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus
from prefect_dstack.services.bundles import bundle_of, holding_bundle
from prefect_dstack.services.preparation import this_user
from prefect_dstack.store.records import find_record
from prefect_dstack.store.run_records import find_run, save_run
from prefect_dstack.store.runs import close_run, deploying, has_died
from prefect_dstack.tasks.replicas import (
    launch_replica,
    provision_instance,
    remove_replica,
    terminate_instance,
)

__all__ = ["begin_run", "remove_run", "run_task_nodes"]

POLL = 0.3
# A host may be silent for so long before its node counts as lost.
SILENCE = 60.0
RETRY_PAUSE = 10.0

_T = TypeVar("_T")


@dataclass
class _Node:
    """One node on its way."""

    plan: NodePlan
    stamp: Stamp
    instance: Instance | None = None
    replica: Replica | None = None
    exit_code: int | None = None
    gone: bool = False
    silent_since: float | None = None
    lines: threading.Thread | None = field(default=None, repr=False)


def begin_run(
    configuration: TaskConfiguration, infrastructure: Infrastructure, flow_run: str, lease: str
) -> RunRecord:
    """Return the record of a new run, saved; what an earlier one of that name has left is removed.

    Args:
        configuration: The task; it has a name.
        infrastructure: Where it is to run.
        flow_run: The id of the flow run.
        lease: The id of the lease with which it holds the lock of the name.

    Raises:
        ConflictError: If a service has the name, or a run of that name goes on.
    """
    name = configuration.name or ""
    if find_record(name) is not None:
        raise ConflictError(f"{name}: is the name of a service; give the task another")
    before = find_run(name)
    if before is not None and before.working is not None and not before.is_over:
        if not has_died(before.working):
            raise ConflictError(
                f"{name}: runs already, in flow run {before.working.flow_run}; "
                f"stop it first: prefect-dstack stop {name}"
            )
        close_run(before.working.flow_run)
    if before is not None:
        remove_run(before, infrastructure)
    local = configuration.image is None
    record = RunRecord(
        kind="task",
        name=name,
        number=1 if before is None else before.number + 1,
        configuration=configuration.model_dump(mode="json", exclude_unset=True) | {"type": "task"},
        directory=str(configuration.directory),
        runtime="process" if local else "docker",
        nodes=len(plan_nodes(configuration)),
        created_at=now(),
        created_by=this_user(),
        working=deploying(None, flow_run, lease),
        location=infrastructure.here if local else None,
    )
    save_run(record)
    return record


def remove_run(record: RunRecord, infrastructure: Infrastructure) -> None:
    """Remove every node of a run, and give its machines back.

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


def run_task_nodes(
    configuration: TaskConfiguration,
    record: RunRecord,
    infrastructure: Infrastructure,
    flow_run: str,
    log: Log,
    *,
    artifacts: Mapping[str, Path] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> RunResult:
    """Run a task to its end, and remove every trace of it.

    Args:
        configuration: The task.
        record: Its record, saved.
        infrastructure: Where it runs.
        flow_run: Stamped on what is created.
        log: Told of progress.
        artifacts: What is copied back when it has succeeded: local paths by those in the master node.
        on_line: Given each line that a node writes; default: the log.

    Returns:
        How it ended.

    Raises:
        RunFailedError: If it ended with another exit code than 0, took too long, or was stopped.
        NoOfferError: If no machine has what it asks for.
    """
    began = time.monotonic()
    bundle = bundle_of(configuration, infrastructure)
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
    name = f"{record.name} (run {record.number})"
    if run.stopped:
        run.finish("stopped", outcome.exit_code, "it was stopped")
        raise RunFailedError(f"{name}: was stopped", 130)
    run.finish("done" if outcome.exit_code == 0 else "failed", outcome.exit_code, outcome.reason)
    if outcome.exit_code != 0:
        raise RunFailedError(f"{name}: {outcome.reason}", outcome.exit_code)
    log.info("%s: done after %.1f s", name, time.monotonic() - began)
    return RunResult(
        name=record.name,
        number=record.number,
        exit_code=outcome.exit_code,
        seconds=time.monotonic() - began,
        artifacts=copied,
    )


class _Run:
    """One run of a task."""

    def __init__(
        self,
        configuration: TaskConfiguration,
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
            ranks = {plan.rank for plan in wave}
            self._at_once(self._launch, [node for node in self.nodes if node.plan.rank in ranks])
        self.record = self.record.model_copy(update={"state": "running"})
        save_run(self.record)
        for node in self.nodes:
            node.lines = threading.Thread(target=self._read, args=(node,), daemon=True)
            node.lines.start()
        try:
            return self._wait(deadline)
        finally:
            self._flush(2.0)

    def _with_retries(self, action: Callable[[], None]) -> None:
        retry = self.configuration.retry
        wanted = (
            retry is not None and retry.enabled and "no-capacity" in (retry.on_events or ("no-capacity",))
        )
        duration = 3600.0 if retry is None or retry.duration is None else float(retry.duration)
        began = time.monotonic()
        while True:
            try:
                action()
            except CapacityError as error:
                if not wanted or time.monotonic() - began > duration:
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
            commands=resolve_commands(configuration, facts, plan.group),
            environment=resolve_environment(configuration, lookup, os.environ, facts),
            registry=resolve_registry_auth(configuration, lookup, os.environ),
            bundle="" if self.bundle is None else self.bundle.digest,
        )
        gpus = [len(it.instance.gpu_devices) if it.instance else 0 for it in self.nodes]
        return spec.model_copy(
            update={
                "ports": tuple(port.container_port for port in plan.ports),
                "restart": False,
                "host_network": len(self.nodes) > 1 and spec.image is not None,
                "facts": node_facts(plan.rank, addresses, gpus),
            }
        )

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
        names = [node.stamp.name for node in self.nodes]
        while True:
            for node in self.nodes:
                self._look_at(node)
            self._pass_on()
            if any(node.gone for node in self.nodes):
                fresh = find_run(self.record.name)
                self.stopped = fresh is not None and fresh.state in ("stopping", "stopped")
                if self.stopped:
                    return RunOutcome(130, "it was stopped")
                lost = next(node.stamp.name for node in self.nodes if node.gone)
                return RunOutcome(1, f"{lost} was removed by somebody else, or its machine is gone")
            codes = {node.plan.rank: node.exit_code for node in self.nodes}
            outcome = run_outcome(codes, names, self.configuration.stop_criteria)
            if outcome is not None:
                return outcome
            if deadline is not None and time.monotonic() > deadline:
                return RunOutcome(
                    124, f"it ran for longer than max_duration, {self.configuration.max_duration} s"
                )
            time.sleep(POLL)

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
            node.exit_code = _exit_code(status)
            if status.out_of_memory:
                self.log.error("%s: ran out of memory: raise resources.memory", node.stamp.name)

    def _read(self, node: _Node) -> None:
        if node.instance is None or node.replica is None:
            return
        prefix = f"[{node.plan.rank}] " if len(self.nodes) > 1 else ""
        with contextlib.suppress(HostError):
            runtime = self.infrastructure.runtime(node.instance, node.replica.runtime)
            machine = self.infrastructure.machine(node.instance)
            for line in runtime.logs(machine, node.replica, follow=True):
                self._lines.put(f"{prefix}{line}")

    def _pass_on(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.on_line(self._lines.get_nowait())

    def _flush(self, patience: float) -> None:
        until = time.monotonic() + patience
        for node in self.nodes:
            if node.lines is not None and node.exit_code is not None:
                node.lines.join(max(0.0, until - time.monotonic()))
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


def _exit_code(status: ReplicaStatus) -> int:
    if status.out_of_memory:
        return 137
    return 0 if status.exit_code is None else status.exit_code
