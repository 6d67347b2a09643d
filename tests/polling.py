"""Wait for something to become true, with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | Literal[False] | None],
    timeout: float = 10.0,
    what: str = "",
    *,
    interval: float = 0.05,
) -> T:
    """Call `condition` until its result is true, and return that result.

    Args:
        condition: Called again and again; what it raises is not caught.
        timeout: Seconds until giving up. The condition is tried at least once, and once more at the end.
        what: What is waited for, for the message of the failure.
        interval: Seconds between two tries.

    Raises:
        TimeoutError: The condition did not become true; carries its last result.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_try = time.monotonic() >= deadline
        result = condition()
        if result:
            return result
        if last_try:
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise TimeoutError(f"not within {timeout:g} s: {name} (last result: {result!r})")
        time.sleep(interval)
