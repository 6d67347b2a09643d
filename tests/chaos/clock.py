"""A clock that can be set: that of all processes which begin with its variables, by libfaketime."""

from __future__ import annotations

import importlib.util
import platform
import random
import sys
from pathlib import Path

_found = importlib.util.find_spec("libfaketime")
# Built for one kind of machine.
LIBRARIES = [
    library
    for place in (_found.submodule_search_locations or [] if _found else [])
    for library in Path(place).rglob("libfaketime.so.1")
    if (sys.platform, platform.machine()) == ("linux", "x86_64")
]
SECONDS = (-3600, -120, -15, 15, 120, 3600)


class SetClock:
    """The time of day, as others see it; what only goes forward is left alone.

    Args:
        directory: Where the file is that tells how far it is off.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self._offset = 0
        self._write()

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which a process has this clock; none if the library does not run here."""
        if not LIBRARIES:
            return {}
        return {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, chance: random.Random) -> str:
        """Set it forward or back, and return what was done."""
        if not LIBRARIES:
            return "libfaketime does not run here: no clock was set"
        change = chance.choice(SECONDS)
        self._offset += change
        self._write()
        return f"set the clock by {change:+d} s, to {self._offset:+d} s"

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+d}\n")
        new.replace(self._file)
