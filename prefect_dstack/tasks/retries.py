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

__all__ = ["is_provisioning_retryable", "is_retryable"]

POINTLESS = (UserError, HostAuthenticationError, HostKeyError, HostNotReadyError, CapacityError)


def is_retryable(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether a failed task is worth another try; the `retry_condition_fn` of tasks.

    Args:
        task: The task.
        task_run: Its run.
        state: The failed state.

    Returns:
        False where the outcome would be the same.
    """
    return not isinstance(_error_of(state), POINTLESS)


def is_provisioning_retryable(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether asking a backend again for a machine, which is patient itself, is worth a try.

    Args:
        task: The task.
        task_run: Its run.
        state: The failed state.

    Returns:
        False where the backend has said why there is none.
    """
    return not isinstance(_error_of(state), (*POINTLESS, ProvisioningError))


def _error_of(state: Any) -> BaseException | None:
    """Return what a task raised; None if it is not one of our errors, and may pass."""
    if isinstance(state.data, BaseException):
        return state.data
    try:
        state.result(raise_on_failure=True)
    except PrefectDstackError as raised:
        return raised
    except Exception:  # noqa: BLE001 - any other failure may be passing
        return None
    return None
