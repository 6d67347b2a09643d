"""Processes that start at once: forked from one that has imported Prefect already, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["forked", "renew_server", "stop_server"]

PRELOADED = [__name__, "prefect_dstack.cli.main", "prefect_dstack.flows.deploy"]
PRELOADED += ["prefect_dstack.flows.reconcile", "prefect_dstack.flows.run_task"]
PRELOADED += ["prefect_dstack.services.overview"]
Streams = tuple[str | Path, str | Path]

# As it was before any test: what forks belongs to none.
_environment, _directory = dict(os.environ), Path.cwd()
_context = multiprocessing.get_context("forkserver")


def forked(
    function: Callable[..., Any],
    *arguments: Any,
    directory: Path | None = None,
    streams: Streams | None = None,
) -> BaseProcess:
    """Start a function in a process of its own, with the present environment.

    Args:
        function: What is called; found by its name.
        *arguments: What it is called with.
        directory: Where it runs; default: the present directory.
        streams: The files for its standard output and its standard error; default: the present ones.
    """
    if forkserver._forkserver._forkserver_pid is None:  # type: ignore[attr-defined]
        _start_server({})
    place = str(directory or Path.cwd())
    process = _context.Process(target=_call, args=(function, arguments, place, dict(os.environ), streams))
    process.start()
    return process


def renew_server(variables: Mapping[str, str]) -> None:
    """Start what forks anew, with variables that only a program that is started can take up.

    Args:
        variables: More of its environment.
    """
    stop_server()
    _start_server(variables)


def stop_server() -> None:
    """End what forks, if it runs."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _start_server(variables: Mapping[str, str]) -> None:
    present, directory = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ |= {**_environment, **variables}
    os.chdir(_directory)
    try:
        _context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ |= present
        os.chdir(directory)


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    directory: str,
    environment: Mapping[str, str],
    streams: Streams | None,
) -> None:
    os.chdir(directory)
    os.environ.clear()
    os.environ |= environment
    if streams is not None:
        for number, path in enumerate((os.devnull, *streams)):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        # Line by line, whoever dies in the middle.
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), *(os.fdopen(it, "w", buffering=1) for it in (1, 2))
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    function(*arguments)
