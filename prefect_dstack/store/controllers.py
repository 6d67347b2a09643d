"""The controllers that watch, as they have written it into the Prefect API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prefect_dstack.blocks import DstackController
from prefect_dstack.store import documents

__all__ = ["HOW_TO_START", "SILENCE", "known_controllers"]

SILENCE = 10.0
"""Seconds after which a leader counts as gone."""
HOW_TO_START = "prefect-dstack controller start"


def known_controllers(clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
    """Return the controllers that have shown signs of life lately.

    Args:
        clock: The time in Unix seconds.
    """
    found = documents.data_of_all(DstackController).values()
    leaders = [dict(data["leader"]) for data in found if data.get("leader")]
    return [leader for leader in leaders if clock() - float(leader.get("at", 0)) < SILENCE]
