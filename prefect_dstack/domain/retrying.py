"""How long to go on trying for machines where there are none."""

from __future__ import annotations

from prefect_dstack.configurations import Retry

__all__ = ["capacity_timeout"]

DEFAULT_DURATION = 3600.0


def capacity_timeout(retry: Retry | None) -> float:
    """Return how long a run goes on trying for a machine.

    Args:
        retry: The configuration's `retry`; None: it has none.

    Returns:
        Seconds; 0 if it does not try again after a lack of capacity.
    """
    if retry is None or not retry.enabled or "no-capacity" not in (retry.on_events or ("no-capacity",)):
        return 0.0
    return DEFAULT_DURATION if retry.duration is None else float(retry.duration)
