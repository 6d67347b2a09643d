"""Keys of ours that may open one port of a host, and do nothing else there."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_dstack.errors import HostNotReadyError
from prefect_dstack.hosts.files import Commander

__all__ = ["authorize", "authorized", "revoke", "tunnel_line"]

COMMENT = "prefect-dstack-tunnel:"

# Replaces the lines with a comment by a new line, or by none. Everything else, and who owns the file, stays.
REPLACE = r"""
umask 077
comment=$1 line=$2
mkdir -p "$HOME/.ssh" || exit 1
exec 9>"$HOME/.ssh/.prefect-dstack.lock" && flock -w 30 9 || exit 1
file=$(readlink -f "$HOME/.ssh/authorized_keys")
[ -n "$line" ] || [ -e "$file" ] || exit 0
new=$(mktemp "$file.XXXXXX") || exit 1
trap 'rm -f "$new" "$HOME/.ssh/.prefect-dstack.lock"' EXIT
if [ -e "$file" ]; then
    # A last line without its end would swallow ours.
    awk -v comment="$comment" '$NF != comment' "$file" >"$new" || exit 1
    chmod --reference="$file" "$new" && chown --reference="$file" "$new" || exit 1
fi
[ -z "$line" ] || echo "$line" >>"$new" || exit 1
if ! [ -s "$new" ]; then
    rm -f "$file"
elif ! cmp -s "$new" "$file"; then
    sync "$new" 2>/dev/null || sync
    mv -f "$new" "$file"
fi
"""

LIST = r"""
file="$HOME/.ssh/authorized_keys"
[ ! -e "$file" ] || awk -v start="$1" 'index($NF, start) == 1 {print $NF}' "$file"
"""


def tunnel_line(public_key: str, name: str, address: str, port: int) -> str:
    """Return the line that lets a key open one port.

    Args:
        public_key: Its kind and the key, with or without a comment.
        name: What the line is found by again; without blanks.
        address: The address to be opened, as the host sees it.
        port: The port.

    Returns:
        A line of `authorized_keys`.

    Example:
        >>> tunnel_line("ssh-ed25519 AAAA x", "edge:hello-1-0", "127.0.0.1", 20000).split(" ")[0]
        'restrict,port-forwarding,permitopen="127.0.0.1:20000",permitlisten="localhost:1",command="false"'
    """
    kind, key = public_key.split()[:2]
    # `port-forwarding` alone would let it listen too, which only a list of ports can narrow down.
    bracketed = f"[{address}]" if ":" in address else address
    options = f'restrict,port-forwarding,permitopen="{bracketed}:{port}",permitlisten="localhost:1"'
    return f'{options},command="false" {kind} {key} {COMMENT}{name}'


def authorize(machine: Commander, public_key: str, name: str, address: str, port: int) -> None:
    """Authorize a key to open one port of a host, for the user that we are there. Idempotent.

    Args:
        machine: The host.
        public_key: The key.
        name: What the line is found by again.
        address: The address to be opened, as the host sees it.
        port: The port.

    Raises:
        HostNotReadyError: If the file cannot be written.
        HostUnreachableError: If the host does not answer.
    """
    _replace(machine, name, tunnel_line(public_key, name, address, port))


def revoke(machine: Commander, name: str) -> None:
    """Revoke a key; one that is not authorized is no error.

    Args:
        machine: The host.
        name: As in `authorize`.

    Raises:
        HostNotReadyError: If the file cannot be written.
        HostUnreachableError: If the host does not answer.
    """
    _replace(machine, name, "")


def authorized(machine: Commander) -> Sequence[str]:
    """List the names under which keys of ours may open ports of a host.

    Args:
        machine: The host.

    Returns:
        The names, as `authorize` took them.
    """
    outcome = machine.run(["sh", "-c", LIST, "sh", COMMENT])
    return [line.removeprefix(COMMENT) for line in outcome.stdout.decode(errors="replace").split()]


def _replace(machine: Commander, name: str, line: str) -> None:
    outcome = machine.run(["sh", "-c", REPLACE, "sh", f"{COMMENT}{name}", line])
    if outcome.exit_code != 0:
        reason = outcome.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise HostNotReadyError(
            f"{machine.name}: cannot write ~/.ssh/authorized_keys there: {reason[0]}: "
            "check the disk and who owns the file"
        )
