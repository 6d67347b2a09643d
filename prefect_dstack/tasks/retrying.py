"""When a task may be tried again."""

from __future__ import annotations

from typing import Any

from prefect_dstack.errors import (
    CapacityError,
    HostAuthenticationError,
    HostKeyError,
    HostNotReadyError,
    PrefectDstackError,
    ProvisioningError,
    UserError,
)

__all__ = ["may_help", "may_help_to_provision"]

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
    return not isinstance(_error_of(state), POINTLESS)


def may_help_to_provision(task: Any, task_run: Any, state: Any) -> bool:
    """Tell whether a retry may help where a backend, which is patient itself, was asked for a machine.

    Args:
        task: The task.
        task_run: Its run.
        state: The failed state.

    Returns:
        False where the backend has said why there is none.
    """
    return not isinstance(_error_of(state), (*POINTLESS, ProvisioningError))


def _error_of(state: Any) -> BaseException | None:
    """Find what a task raised; None if it is none of ours, and may be passing."""
    if isinstance(state.data, BaseException):
        return state.data
    try:
        state.result(raise_on_failure=True)
    except PrefectDstackError as raised:
        return raised
    except Exception:  # noqa: BLE001 - any other failure may be passing
        return None
    return None
