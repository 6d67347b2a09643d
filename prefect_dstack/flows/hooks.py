"""What happens when a flow run failed, was cancelled or crashed; it may run in another process than that."""

from __future__ import annotations

from typing import Any

from prefect_dstack.domain.record import LOST
from prefect_dstack.flows.restore import restore_service
from prefect_dstack.flows.stop_run import stop_run
from prefect_dstack.store.records import all_records
from prefect_dstack.store.run_records import all_runs
from prefect_dstack.store.runs import is_this_process

__all__ = ["remove_run_hook", "restore_hook"]


def restore_hook(flow: Any, flow_run: Any, state: Any) -> None:
    """Undo a deployment that did not come to its end.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: How it ended.
    """
    for record in all_records():
        if record.deploying is not None and record.deploying.flow_run == str(flow_run.id):
            reason = LOST
            if state.is_cancelling() or state.is_cancelled():
                reason = "it was cancelled"
            elif state.name == "TimedOut":
                reason = "it timed out"
            elif state.is_crashed() and is_this_process(record.deploying):
                reason = "it was interrupted"
            restore_service(record.name, str(flow_run.id), reason)


def remove_run_hook(flow: Any, flow_run: Any, state: Any) -> None:
    """Remove the nodes of a task that was cancelled, or whose process has died.

    Args:
        flow: The flow.
        flow_run: Its run.
        state: How it ended.
    """
    for record in all_runs():
        if record.working is not None and record.working.flow_run == str(flow_run.id):
            stop_run(record.name)
