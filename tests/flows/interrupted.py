"""Deployments that are killed at a task boundary: each line of standard input is `NUMBER FILE`.

The flow of the file is run in a process of its own, which gets SIGKILL as its NUMBERth task begins or ends.
The answer is `killed` or `done`, with the boundary.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import count
from typing import Any

import prefect_dstack.flows.deploy  # noqa: F401 - once, for all the processes
from prefect_dstack import deploy_service
from prefect_dstack.tasks import gateways, replicas


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        number, _, file = line.rstrip("\n").partition(" ")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            run(int(number), file, write)
        os.close(write)
        with os.fdopen(read) as stream:
            boundary = stream.read()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else "done", boundary, flush=True)


def run(number: int, file: str, report: int) -> None:
    """Deploy, and die at a boundary."""
    boundaries, lock = count(1), threading.Lock()

    def pass_boundary(task: Any, task_run: Any, state: Any) -> None:
        with lock:
            if next(boundaries) == number:
                os.write(report, f"{task.name} {state.name}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()

    for module in (gateways, replicas):
        for name in module.__all__:
            for hooks in ("on_running", "on_completion"):
                if hasattr(getattr(module, name), hooks):
                    getattr(getattr(module, name), hooks)(pass_boundary)
    try:
        deploy_service(file)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
