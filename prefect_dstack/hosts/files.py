"""Files of a machine, written and removed through commands: the same way with and without `sudo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prefect_dstack.errors import HostError, HostNotReadyError
from prefect_dstack.hosts.machine import CommandResult

__all__ = ["Commander", "remove", "write_file"]

# The new file is complete, has its mode and owner and is on the disk before it takes the old one's name.
WRITE = """
umask 077
new=$(mktemp "$1.XXXXXX") || exit 1
trap 'rm -f "$new"' EXIT
cat >"$new" && chmod "$2" "$new" && { [ -z "$3" ] || chown "$3" "$new"; } || exit 1
sync "$new" 2>/dev/null || sync
mv -f "$new" "$1"
"""


class Commander(Protocol):
    """Runs commands on a machine: a `Machine`, or one as root."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def run(
        self, command: Sequence[str], *, stdin: bytes | None = None, timeout: float = 60.0
    ) -> CommandResult:
        """Implement `Machine.run`."""
        ...


def write_file(
    machine: Commander, path: str, data: bytes, *, mode: int = 0o600, owner: str | None = None
) -> None:
    """Write a file atomically: a reader sees the old one or the new one.

    Args:
        machine: Where.
        path: Its absolute path, in a directory that exists.
        data: What it holds.
        mode: Its permissions.
        owner: `user` or `user:group`; default: whoever runs commands there.

    Raises:
        HostNotReadyError: If it cannot be written; nothing is left of the attempt.
        HostUnreachableError: If the machine does not answer.
    """
    _check(machine, ["sh", "-c", WRITE, "sh", path, f"{mode:o}", owner or ""], f"write {path}", data)


def remove(machine: Commander, paths: Sequence[str]) -> None:
    """Remove files and directories with all that is in them; missing ones are no error.

    Args:
        machine: Where.
        paths: Absolute paths.

    Raises:
        HostNotReadyError: If one cannot be removed.
        HostUnreachableError: If the machine does not answer.
    """
    _check(machine, ["rm", "-rf", "--", *paths], f"remove {' '.join(paths)}")


def _check(machine: Commander, command: Sequence[str], doing: str, stdin: bytes | None = None) -> None:
    outcome = machine.run(command, stdin=stdin)
    if outcome.exit_code != 0:
        raise _explain(machine.name, doing, outcome)


def _explain(name: str, doing: str, outcome: CommandResult) -> HostError:
    words = outcome.stderr.decode(errors="replace").strip().splitlines()
    reason = words[-1] if words else f"exit code {outcome.exit_code}"
    remedy = "check the path and the user's rights there"
    if "No space left" in reason or "Disk quota" in reason:
        remedy = "its disk is full, free some space (`df -h` there shows where)"
    return HostNotReadyError(f"{name}: cannot {doing}: {reason}: {remedy}")
