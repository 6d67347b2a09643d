"""What stands behind `ssh NAME`: an SSH server on standard input and output that enters a run.

Run as `python -m prefect_dstack.cli.ssh_proxy NAME NODE`, as the `ProxyCommand` of an entry.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_dstack.domain.run_record import RunRecord
    from prefect_dstack.runtimes.entering import Entrance

__all__ = ["main"]

POLL = 0.5
# How often it is asked whether what was entered still runs, in seconds.
LOOK = 2.0


def main() -> None:
    """Serve one client, until it leaves or what it has entered is gone."""
    name, node = sys.argv[1], int(sys.argv[2])
    # Whatever else is printed must not reach the client as a part of the protocol.
    outgoing = os.dup(1)
    os.dup2(2, 1)
    left = False

    def leave(*_: object) -> None:
        nonlocal left
        left = True

    # OpenSSH ends the command when it has what it wants; what runs on a terminal is hung up before.
    signal.signal(signal.SIGHUP, leave)
    signal.signal(signal.SIGTERM, leave)
    from prefect_dstack.cli.output import console_error, reading
    from prefect_dstack.errors import PrefectDstackError

    try:
        with reading():
            from prefect_dstack.runtimes.ssh_server import PipePair, SshServer
            from prefect_dstack.services.runs.entering import entrance_of, ssh_keys
            from prefect_dstack.store.sources import resolve_infrastructure

            infrastructure = resolve_infrastructure()
            record = _begun(name, lambda: left)
            entrance = entrance_of(record, infrastructure, node)
            keys = ssh_keys(infrastructure.home)
        runs = _still_running(entrance)
        with entrance.staying():
            SshServer(entrance, keys.client).serve(
                PipePair(0, outgoing), keys.host, lambda: not left and runs()
            )
    except PrefectDstackError as error:
        console_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _begun(name: str, left: Callable[[], bool]) -> RunRecord:
    """Wait for a run that is still being prepared."""
    from prefect_dstack.store.run_records import load_run

    record = load_run(name)
    if record.state == "provisioning":
        print(f"{name} is being prepared", file=sys.stderr)  # noqa: T201
    while record.state == "provisioning" and not left():
        time.sleep(POLL)
        record = load_run(name)
    return record


def _still_running(entrance: Entrance) -> Callable[[], bool]:
    from prefect_dstack.errors import HostError

    looked = time.monotonic()

    def runs() -> bool:
        nonlocal looked
        if time.monotonic() - looked < LOOK:
            return True
        looked = time.monotonic()
        try:
            return entrance.is_running()
        except (HostError, OSError):
            return True

    return runs


if __name__ == "__main__":
    main()
