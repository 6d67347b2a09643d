"""What the command line shows: a live status on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

__all__ = [
    "INTERRUPTED",
    "can_ask",
    "confirm",
    "connected",
    "console_error",
    "err",
    "out",
    "plain_progress",
    "print_json",
    "progress",
    "reading",
    "show_table",
]

INTERRUPTED = "interrupted; prefect-dstack ps shows what serves"


class _LazyConsole:
    """A console that is made when something is first shown: completion and --version show nothing on it."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    @functools.cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True, **self._options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)


out = cast("Console", _LazyConsole())
err = cast("Console", _LazyConsole(stderr=True))


def console_error(message: str) -> None:
    """Print an error as one line on standard error.

    Args:
        message: What went wrong.
    """
    err.print("[red]error:[/red]", end=" ")
    err.print(message, markup=False)


def print_json(value: Any) -> None:
    """Print a value as JSON, which programs read.

    Args:
        value: What `json.dumps` takes.
    """
    import json

    print(json.dumps(value))  # noqa: T201


def show_table(title: list[str], rows: list[list[str]]) -> None:
    """Print a table; on a terminal it is as wide as that, elsewhere as wide as its cells.

    Args:
        title: The heads of the columns.
        rows: The cells, row by row.
    """
    from prefect_dstack.cli.tables import print_table

    print_table(title, rows)


def can_ask() -> bool:
    """Return whether there is somebody to ask: whether standard input is a terminal."""
    return sys.stdin.isatty()


def confirm(question: str, yes: bool) -> bool:
    """Ask for confirmation.

    Args:
        question: What to ask.
        yes: Whether the answer was given in advance.

    Returns:
        Whether to go on; without a terminal to ask on, only if the answer was given.
    """
    if yes:
        return True
    if not can_ask():
        console_error(f"{question} There is no terminal to ask on: add -y")
        return False
    return out.input(f"{question} [y/N] ", markup=False).strip().lower() in ("y", "yes")


class _Lines(logging.Handler):
    """Shows the log of flow and task runs."""

    def __init__(self, status: Status | None) -> None:
        super().__init__(logging.INFO)
        self.status = status

    def emit(self, record: logging.LogRecord) -> None:
        # Prefect's own lines on states and tracebacks are in its UI; here they would bury what matters.
        if not record.pathname.startswith(_OURS):
            return
        line = record.getMessage()
        if self.status is not None:
            self.status.update(line.replace("[", r"\["))
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, "dim")
        err.print(line, style=style, markup=False)


_OURS = __file__.rpartition("cli")[0]


class _Plain(logging.Handler):
    """Writes the log of flow and task runs as it is: it has what a task has written, of whatever form."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        if record.pathname.startswith(_OURS):
            print(record.getMessage(), flush=True)  # noqa: T201


@contextlib.contextmanager
def plain_progress() -> Iterator[None]:
    """Print what flows and tasks tell while they run, unchanged, on standard output."""
    handler = _Plain()
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Show what flows and tasks tell while they run."""
    status = err.status("starting") if err.is_terminal else None
    handler = _Lines(status)
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addHandler(handler)
    with status if status is not None else contextlib.nullcontext():
        try:
            yield
        except KeyboardInterrupt:
            console_error(INTERRUPTED)
            raise typer.Exit(128 + signal.SIGINT) from None
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


def connected(*_: Any) -> str:
    """Find the Prefect API, or start a server; see `api.connect`.

    Returns:
        Its URL.
    """
    import prefect.main  # noqa: F401 - sets up the handlers that are replaced here

    from prefect_dstack.api import connect

    logging.getLogger().handlers[:] = [logging.NullHandler()]
    with err.status("looking for the Prefect API") if err.is_terminal else contextlib.nullcontext():
        return connect(lambda line: err.print(line, style="dim", markup=False))


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Use the Prefect API for a command that changes nothing; Ctrl-C ends it without a word."""
    # Prefect reads it when it is first imported. Who waits at a terminal asks again himself.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "0")
    from prefect_dstack import api
    from prefect_dstack.store.clients import sharing_client

    try:
        with api.reading(lambda line: err.print(line, style="dim", markup=False)), sharing_client():
            yield
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None
