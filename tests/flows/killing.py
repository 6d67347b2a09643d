"""Deployments in processes of their own, which are killed in the middle of them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from prefect import Task

from tests.polling import wait_until

# Starts children that have all of this imported already, and no threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.flows.killing", "prefect_dstack.flows.deploy"])


def deploy_and_die(configuration: Mapping[str, Any], at: int | str) -> bool:
    """Redeploy in another process, which is killed as soon as it begins a task.

    Args:
        configuration: The service.
        at: Which task, by its name, or counted from 1.

    Returns:
        Whether it was killed; else there was no such task, or there were not so many.
    """
    process = _start(configuration, at)
    process.join(120)
    killed = process.exitcode == -signal.SIGKILL
    assert killed or process.exitcode == 0, f"it ended with {process.exitcode}"
    return killed


def deploy_and_die_when(configuration: Mapping[str, Any], seen: Callable[[], Any]) -> None:
    """Redeploy in another process, which is killed as soon as something has been seen.

    Args:
        configuration: The service.
        seen: Looks for it.
    """
    process = _start(configuration, 0)
    try:
        wait_until(seen, 120, "it is time to die")
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def _start(configuration: Mapping[str, Any], at: int | str) -> multiprocessing.process.BaseProcess:
    names = [name for name in os.environ if name.startswith("PREFECT_")]
    environment = {name: os.environ[name] for name in [*names, "HOME"]}
    process = context.Process(target=_deploy_and_die, args=(configuration, at, environment))
    process.start()
    return process


def _deploy_and_die(configuration: Mapping[str, Any], at: int | str, environment: Mapping[str, str]) -> None:
    os.environ |= environment
    from prefect.context import refresh_global_settings_context

    from prefect_dstack import deploy_service
    from prefect_dstack.tasks import canary, gateways, replicas

    refresh_global_settings_context()
    counter = itertools.count(1)
    for module in (gateways, replicas, canary):
        for value in list(vars(module).values()):
            if isinstance(value, Task):
                value.fn = _deadly(value, counter, at)
    deploy_service(dict(configuration), force=True)


def _deadly(task: Task[..., Any], counter: itertools.count[int], at: int | str) -> Callable[..., Any]:
    function = task.fn

    def deadly(*arguments: Any, **options: Any) -> Any:
        if at in (task.name, next(counter)):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    deadly.__wrapped__ = function  # type: ignore[attr-defined]
    return deadly
