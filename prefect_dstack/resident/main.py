"""`python -m prefect_dstack.resident.main`: the resident controller in the foreground."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from prefect_dstack.errors import PrefectDstackError

__all__ = ["main"]


def main() -> None:
    """Watch all services until SIGTERM or SIGINT."""
    from prefect_dstack.api import connect
    from prefect_dstack.resident.controller import run_controller

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("prefect_dstack")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # Prefect's own handler would write each line again
    connect(lambda line: print(line, file=sys.stderr))  # noqa: T201
    run_controller(stop)


if __name__ == "__main__":
    try:
        main()
    except PrefectDstackError as error:
        sys.exit(str(error))
