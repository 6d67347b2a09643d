"""Files of a machine, read and written through commands: the same way with and without `sudo`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Protocol

from prefect_dstack.errors import HostError, HostNotReadyError
from prefect_dstack.hosts.machine import CommandResult

__all__ = [
    "Commander",
    "file_exists",
    "list_directory",
    "make_directory",
    "read_file",
    "remove",
    "write_file",
]

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
        """See `Machine.run`."""
        ...


def write_file(
    machine: Commander, path: str, data: bytes, *, mode: int = 0o600, owner: str | None = None
) -> None:
    """Write a file in one step: whoever reads it sees the old one or the new one.

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
    _checked(machine, ["sh", "-c", WRITE, "sh", path, f"{mode:o}", owner or ""], f"write {path}", data)


def read_file(machine: Commander, path: str) -> bytes:
    """Read a whole file.

    Args:
        machine: Where.
        path: Its absolute path.

    Returns:
        What it holds.

    Raises:
        HostNotReadyError: If it cannot be read.
        HostUnreachableError: If the machine does not answer.
    """
    return _checked(machine, ["cat", "--", path], f"read {path}")


def file_exists(machine: Commander, path: str) -> bool:
    """Tell whether a path exists on a machine.

    Args:
        machine: Where.
        path: Its absolute path.

    Returns:
        Whether something is there.
    """
    return machine.run(["test", "-e", path]).exit_code == 0


def list_directory(machine: Commander, path: str) -> list[str]:
    """List the names in a directory.

    Args:
        machine: Where.
        path: Its absolute path.

    Returns:
        Names in order; none if there is no such directory.
    """
    listing = machine.run(["ls", "-1", "--", path])
    return sorted(listing.stdout.decode(errors="replace").splitlines()) if listing.exit_code == 0 else []


def make_directory(machine: Commander, path: str, *, mode: int = 0o700) -> None:
    """Make a directory with its parents, unless it is there.

    Args:
        machine: Where.
        path: Its absolute path.
        mode: Its permissions, set also on one that was there.

    Raises:
        HostNotReadyError: If it cannot be made.
        HostUnreachableError: If the machine does not answer.
    """
    command = f"mkdir -p -- {shlex.quote(path)} && chmod {mode:o} -- {shlex.quote(path)}"
    _checked(machine, ["sh", "-c", command], f"make {path}")


def remove(machine: Commander, paths: Sequence[str]) -> None:
    """Remove files and directories with all that is in them; missing ones are no error.

    Args:
        machine: Where.
        paths: Absolute paths.

    Raises:
        HostNotReadyError: If one cannot be removed.
        HostUnreachableError: If the machine does not answer.
    """
    _checked(machine, ["rm", "-rf", "--", *paths], f"remove {' '.join(paths)}")


def _checked(machine: Commander, command: Sequence[str], doing: str, stdin: bytes | None = None) -> bytes:
    outcome = machine.run(command, stdin=stdin)
    if outcome.exit_code != 0:
        raise _explain(machine.name, doing, outcome)
    return outcome.stdout


def _explain(name: str, doing: str, outcome: CommandResult) -> HostError:
    words = outcome.stderr.decode(errors="replace").strip().splitlines()
    reason = words[-1] if words else f"exit code {outcome.exit_code}"
    remedy = "check the path and the user's rights there"
    if "No space left" in reason or "Disk quota" in reason:
        remedy = "its disk is full, free some space (`df -h` there shows where)"
    return HostNotReadyError(f"{name}: cannot {doing}: {reason}: {remedy}")
