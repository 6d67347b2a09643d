"""Which machine this is, as others on the same Prefect API tell it from theirs."""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["MachineIdentity", "machine_identity"]

FILE = "machine.json"


class MachineIdentity(BaseModel):
    """One home directory of prefect-dstack on one machine: where local replicas and gateways live."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Made once, kept in the home directory: the same after a reboot.")
    hostname: str = Field(description="What the machine calls itself.")
    home: str = Field(default="", description="The home directory of prefect-dstack there.")

    def differs_from(self, location: MachineIdentity | None) -> bool:
        """Return whether something is bound to another machine than this one.

        Args:
            location: The machine that it is bound to; None: none.
        """
        return location is not None and location.id != self.id

    def __str__(self) -> str:
        return f"{self.hostname} ({self.home})" if self.home else self.hostname


def machine_identity(home: Path) -> MachineIdentity:
    """Return the identity of a home directory on this machine; the first call makes it.

    A home directory that was copied to another machine, or moved, keeps its id.

    Args:
        home: The home directory of prefect-dstack.

    Returns:
        Its identity, with the host name that the machine has now.
    """
    path = home.absolute() / FILE
    known = _read(path)
    if known is None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{FILE}.{os.getpid()}.{uuid.uuid4().hex}")
        made = MachineIdentity(id=uuid.uuid4().hex, hostname=platform.node())
        fresh.write_text(made.model_dump_json(include={"id", "hostname"}))
        # Two processes may make it at once: the first counts.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
        known = _read(path) or made
    return MachineIdentity(id=known.id, hostname=platform.node(), home=str(home.absolute()))


def _read(path: Path) -> MachineIdentity | None:
    try:
        return MachineIdentity.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None
