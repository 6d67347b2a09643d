"""Who has a name: at most one task or development environment at a time, and never beside a service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect_dstack.configurations import DevEnvironmentConfiguration, TaskConfiguration
from prefect_dstack.controller.convergence import Log
from prefect_dstack.controller.goal import DEFAULT_GRACE
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.record import Deploying, now
from prefect_dstack.domain.run_record import RunRecord, RunState
from prefect_dstack.domain.task_nodes import plan_nodes
from prefect_dstack.errors import ConflictError
from prefect_dstack.hosts.ssh_entry import remove_entry
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.preparation import this_user
from prefect_dstack.store.locks import lock
from prefect_dstack.store.records import find_record
from prefect_dstack.store.run_records import find_run, save_run
from prefect_dstack.store.runs import close_run, deploying, has_died
from prefect_dstack.tasks.replicas import remove_replica, terminate_instance

__all__ = ["Runnable", "begin_run", "end_lost_run", "holding_name", "refuse_running", "remove_run"]

Runnable = TaskConfiguration | DevEnvironmentConfiguration

# Seconds that a run waits for another one which begins under the same name.
PATIENCE = 10.0


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
    if record.working is None or has_died(record.working):
        return
    raise ConflictError(
        f"{name}: runs already, in flow run {record.working.flow_run}; stop it first: "
        f"prefect-dstack stop {name}"
    )


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


def end_lost_run(
    name: str,
    infrastructure: Infrastructure,
    flow_run: str,
    log: Log,
    *,
    state: RunState,
    reason: str,
) -> bool:
    """Remove what a run has left whose process has died, and record how it ended.

    Args:
        name: The run.
        infrastructure: Where its nodes are.
        flow_run: The id of the flow run that does this.
        log: Told when it has to wait.
        state: How it ended.
        reason: Why.

    Returns:
        Whether there was one; somebody else may have ended it, or begun the next.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(holding_name(name, flow_run, log))
        except ConflictError:
            return False
        record = find_run(name)
        if record is None or record.is_over:
            return False
        if record.working is not None:
            close_run(record.working.flow_run)
        remove_run(record, infrastructure)
        ended = {"state": state, "reason": reason, "ended_at": now(), "working": None}
        save_run(record.model_copy(update=ended))
    return True


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
