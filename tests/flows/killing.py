"""Deployments in processes of their own, which are killed in the middle of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect import Task

from tests.forking import forked
from tests.polling import wait_until

# The tasks of the first deployment of a service, in their order.
FIRST_TASKS = (
    "create-gateway",
    "provision-instance",
    "launch-replica",
    "wait-until-ready",
    "register-route",
    "update-route",
    "verify-endpoint",
)


def deploy_and_die(configuration: Mapping[str, Any], at: int | str) -> bool:
    """Redeploy in another process, which is killed as soon as it begins a task.

    Args:
        configuration: The service.
        at: Which task, by its name, or counted from 1.

    Returns:
        Whether it was killed; else there was no such task, or there were not so many.
    """
    process = forked(_deploy_and_die, configuration, at)
    process.join(120)
    killed = process.exitcode == -signal.SIGKILL
    assert killed or process.exitcode == 0, f"it ended with {process.exitcode}"
    return killed


def approve_and_die(name: str, at: int) -> bool:
    """Approve the revision that waits in another process, which is killed as soon as it begins a task.

    Args:
        name: The service.
        at: Which task, counted from 1.

    Returns:
        Whether it was killed; else there were not so many tasks.
    """
    return deploy_and_die({"type": "approval", "name": name}, at)


def stop_and_die(name: str, at: int | str) -> bool:
    """Stop a service in another process, which is killed as soon as it begins a task.

    Args:
        name: The service.
        at: Which task, by its name, or counted from 1.

    Returns:
        Whether it was killed; else there was no such task.
    """
    return deploy_and_die({"type": "stop", "name": name}, at)


def deploy_and_die_when(configuration: Mapping[str, Any], seen: Callable[[], Any]) -> None:
    """Redeploy, or run a task, in another process, which is killed as soon as something has been seen.

    Args:
        configuration: The service or the task.
        seen: Looks for it.
    """
    process = forked(_deploy_and_die, configuration, 0)
    try:
        wait_until(seen, 120, "it is time to die")
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def deploy_and_die_at_each_boundary(configuration: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """Deploy again and again, each time killed one boundary later; at last it is not killed.

    Args:
        configuration: The service; what an earlier deployment of it has left is to be gone by the next.
        directory: For its file.

    Yields:
        The boundary at which it was killed: the name of the task, and `Running` or `Completed`.
    """
    file = directory / "killed.dstack.yml"
    file.write_text(json.dumps(configuration))
    command = [sys.executable, "-m", "tests.flows.interrupted"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as killer:
        assert killer.stdin
        assert killer.stdout
        for number in itertools.count(1):
            killer.stdin.write(f"{number} {file}\n")
            killer.stdin.flush()
            how, _, boundary = killer.stdout.readline().strip().partition(" ")
            if how == "done":
                break
            assert how == "killed", how
            yield boundary
        killer.stdin.close()


def _deploy_and_die(configuration: Mapping[str, Any], at: int | str) -> None:
    from prefect_dstack import approve_service, deploy_service, run_task, stop_service
    from prefect_dstack.tasks import canary, gateways, replicas

    counter = itertools.count(1)
    for module in (gateways, replicas, canary):
        for value in list(vars(module).values()):
            if isinstance(value, Task):
                value.fn = _deadly(value, counter, at)
    if configuration["type"] == "approval":
        approve_service(configuration["name"])
    elif configuration["type"] == "stop":
        stop_service(configuration["name"])
    elif configuration["type"] == "task":
        run_task(dict(configuration))
    else:
        deploy_service(dict(configuration), force=True)


def _deadly(task: Task[..., Any], counter: itertools.count[int], at: int | str) -> Callable[..., Any]:
    function = task.fn

    def deadly(*arguments: Any, **options: Any) -> Any:
        if at in (task.name, next(counter)):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    deadly.__wrapped__ = function  # type: ignore[attr-defined]
    return deadly
