"""Tasks and development environments: provisioned, run to their end, and taken down whatever happens."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from prefect_dstack.configurations import DevEnvironmentConfiguration
from prefect_dstack.controller.convergence import Log
from prefect_dstack.domain.priorities import ahead_of
from prefect_dstack.domain.record import now
from prefect_dstack.domain.retrying import capacity_timeout
from prefect_dstack.domain.run_record import RunRecord, RunResult
from prefect_dstack.domain.task_nodes import RunOutcome, run_outcome, start_waves
from prefect_dstack.errors import (
    CapacityError,
    HostError,
    HostUnreachableError,
    NoRoomError,
    RunFailedError,
)
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.bundles import bundle_of, holding_bundle, prune_bundles
from prefect_dstack.services.runs.dev_environments import Stay
from prefect_dstack.services.runs.entering import entrance_of_found
from prefect_dstack.services.runs.names import Runnable
from prefect_dstack.services.runs.nodes import Node, Nodes
from prefect_dstack.services.runs.utilization import AcceleratorUse
from prefect_dstack.store.run_records import all_runs, find_run, save_run

__all__ = ["run_nodes"]

POLL = 0.3
RETRY_PAUSE = 10.0
# How often a run asks whether somebody has stopped it.
STOP_INTERVAL = 2.0
# Seconds for the last lines of nodes that have ended.
LAST_LINES = 10.0

STOPPED = RunOutcome(130, "it was stopped")


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
    nodes = Nodes(configuration, record, infrastructure, flow_run, log, bundle)
    run = _Run(record, nodes, on_line or log.info)
    limit = configuration.max_duration
    deadline = None if limit in (None, "off") else began + float(limit)
    copied: list[str] = []
    try:
        with holding_bundle(bundle, infrastructure.bundles):
            outcome = run.to_its_end(deadline)
        if outcome.exit_code == 0 and artifacts:
            copied = run.nodes.bring_back(artifacts)
    except BaseException as error:
        run.finish("failed", getattr(error, "exit_code", 1), str(error) or type(error).__name__)
        raise
    finally:
        run.remove()
        if bundle is not None:
            with contextlib.suppress(Exception):  # the next reconcile removes it, too
                prune_bundles(infrastructure, among={bundle.digest})
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

    def __init__(self, record: RunRecord, nodes: Nodes, on_line: Callable[[str], None]) -> None:
        self.record, self.nodes, self.on_line = record, nodes, on_line
        self.configuration, self.infrastructure, self.log = (
            nodes.configuration,
            nodes.infrastructure,
            nodes.log,
        )
        self.stopped = False
        self.stay = (
            Stay(self.configuration, self.infrastructure, self.log)
            if isinstance(self.configuration, DevEnvironmentConfiguration)
            else None
        )
        policy = self.configuration.utilization_policy
        self.use = None if policy is None else AcceleratorUse(policy, self.infrastructure, self.log)
        self._lines: queue.Queue[str] = queue.Queue(maxsize=10_000)

    def to_its_end(self, deadline: float | None) -> RunOutcome:
        self._with_retries(self.nodes.provision)
        for wave in start_waves([node.plan for node in self.nodes.all], self.configuration.startup_order):
            if self._is_stopped():
                return STOPPED
            self.nodes.launch({plan.rank for plan in wave})
        if self._is_stopped():
            return STOPPED
        if self.stay is None:
            self._is_running()
        for node in self.nodes.all:
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
            if duration:
                self._wait_for_turn()
            try:
                action()
            except (CapacityError, NoRoomError) as error:
                if time.monotonic() - began >= duration or self._is_stopped():
                    raise
                self.log.warning("%s: %s; trying again in %.0f s", self.record.name, error, RETRY_PAUSE)
                self._tried(now())
                time.sleep(RETRY_PAUSE)
            else:
                if self.record.tried_at is not None:
                    self._tried(None)
                return

    def _wait_for_turn(self) -> None:
        """Let runs of higher priority try first."""
        told = False
        while (first := ahead_of(self.record, all_runs(), now(), 3 * RETRY_PAUSE)) and not self._is_stopped():
            if not told:
                self.log.info("%s: %s has a higher priority, and tries first", self.record.name, first.name)
            told = True
            time.sleep(RETRY_PAUSE / 10)

    def _tried(self, at: datetime | None) -> None:
        self.record = self.record.model_copy(update={"tried_at": at})
        save_run(self.record)

    def _wait(self, deadline: float | None) -> RunOutcome:
        asked = time.monotonic()
        while True:
            self.nodes.look()
            self._pass_on()
            outcome = self._outcome() or self._staying() or self._unused()
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
        lost = [node.stamp.name for node in self.nodes.all if node.gone]
        if lost:
            return RunOutcome(1, f"{lost[0]} was removed by somebody else, or its machine is gone")
        codes = {node.plan.rank: node.exit_code for node in self.nodes.all}
        outcome = run_outcome(
            codes, [node.stamp.name for node in self.nodes.all], self.configuration.stop_criteria
        )
        if outcome is not None and any(node.out_of_memory for node in self.nodes.all):
            return RunOutcome(outcome.exit_code, f"{outcome.reason}, out of memory: raise resources.memory")
        if outcome is not None and self.stay is not None and not self.stay.is_ready:
            reason = outcome.reason or f"{self.nodes.all[0].stamp.name} ended"
            return RunOutcome(outcome.exit_code or 1, f"'init' did not come to its end: {reason}")
        return outcome

    def _staying(self) -> RunOutcome | None:
        """Look after a development environment; returns how it ends once nobody uses it any more."""
        node = self.nodes.all[0]
        found = node.found
        if self.stay is None or found is None or node.silent_since:
            return None
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

    def _unused(self) -> RunOutcome | None:
        """End a run that does not use its accelerators, as its policy says."""
        reason = None if self.use is None else self.use.look(self.nodes.all)
        # For a development environment that is a planned end.
        return None if reason is None else RunOutcome(1 if self.stay is None else 0, reason)

    def _is_stopped(self) -> bool:
        fresh = find_run(self.record.name)
        self.stopped = fresh is not None and fresh.state in ("stopping", "stopped")
        return self.stopped

    def _read(self, node: Node, *, follow: bool = True) -> None:
        prefix = f"[{node.plan.rank}] " if len(self.nodes.all) > 1 else ""
        if node.found is None:
            return
        with contextlib.suppress(HostError):
            tail = None if follow else 100
            for line in self.infrastructure.logs(node.found, follow=follow, tail=tail):
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
        ended = [
            node.lines for node in self.nodes.all if node.lines is not None and node.exit_code is not None
        ]
        while any(thread.is_alive() for thread in ended) and time.monotonic() < until:
            self._pass_on()
            time.sleep(POLL / 10)
        self._pass_on()

    def remove(self) -> None:
        self.nodes.remove()
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
