"""When a task may be tried again."""

from __future__ import annotations

from typing import Any

from prefect_dstack.errors import (
    CapacityError,
    HostAuthenticationError,
    HostKeyError,
    HostNotReadyError,
    PrefectDstackError,
    UserError,
)

__all__ = ["may_help"]

POINTLESS = (UserError, HostAuthenticationError, HostKeyError, HostNotReadyError, CapacityError)


def may_help(task: Any, task_run: Any, state: Any) -> bool:
    """Tell whether a retry may help; for the `retry_condition_fn` of a task.

    Args:
        task: The task.
        task_run: Its run.
        state: The failed state.

    Returns:
        False where the outcome would be the same.
    """
    error = state.data if isinstance(state.data, BaseException) else None
    if error is None:
        try:
            state.result(raise_on_failure=True)
        except PrefectDstackError as raised:
            error = raised
        except Exception:  # noqa: BLE001 - any other failure may be passing
            return True
    return not isinstance(error, POINTLESS)
