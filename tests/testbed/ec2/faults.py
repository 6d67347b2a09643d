"""What goes wrong on purpose: rules that say which requests are answered with which error."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["refuse", "lose-answer", "never-boot"]


class Fault(BaseModel):
    """One rule.

    Args:
        action: The API action, for example `RunInstances`.
        kind: `refuse`: answer with an error and do nothing; `lose-answer`: do it and answer nothing;
            `never-boot`: do it, but the instance's host stays off.
        code: AWS's code for the error.
        message: AWS's words for it.
        status: The HTTP status.
        where: Only requests with these properties: `region`, `zone`, `type`, `market` (spot or on-demand).
        times: How often it strikes; None: for ever.
    """

    model_config = ConfigDict(extra="forbid")

    action: str
    kind: Kind = "refuse"
    code: str = ""
    message: str = "injected by the testbed"
    status: int = 400
    where: dict[str, str] = {}
    times: int | None = None


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Put a rule in force, behind those that are."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Lift all rules."""
        with self._lock:
            self._faults.clear()

    def strike(self, action: str, properties: Mapping[str, Any]) -> Fault | None:
        """The first rule that a request falls under; it is counted."""
        with self._lock:
            for fault in self._faults:
                hit = all(properties.get(key) == value for key, value in fault.where.items())
                if fault.action == action and hit and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None
