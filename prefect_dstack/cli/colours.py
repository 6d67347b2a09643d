"""Colours on a terminal, and nowhere else."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

import typer

__all__ = ["OUTCOMES", "STATES", "are_wanted", "paint"]

# How a service, a run or a replica is.
STATES = {
    "serving": "green",
    "running": "green",
    "done": "green",
    "degraded": "yellow",
    "elsewhere": "yellow",
    "unknown": "yellow",
    "deploying": "cyan",
    "provisioning": "cyan",
    "starting": "cyan",
    "stopping": "cyan",
    "waiting": "cyan",
    "down": "red",
    "exited": "red",
    "failed": "red",
    "unfinished": "red",
    "stopped": "dim",
}
# How the deployment of a revision ended.
OUTCOMES = {
    "active": "green",
    "deploying": "cyan",
    "waiting": "cyan",
    "failed": "red",
    "stopped": "dim",
    "superseded": "dim",
}


def are_wanted(stream: IO[Any] | None = None) -> bool:
    """Return whether what is written to a stream may have colours.

    Args:
        stream: The stream; default: standard output.
    """
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str | None) -> str:
    """Return text in a style, if standard output has colours.

    Args:
        text: The text.
        style: `bold`, `dim` or a colour; None: as it is.
    """
    if not style or not text or not are_wanted():
        return text
    if style in ("bold", "dim"):
        return typer.style(text, bold=style == "bold" or None, dim=style == "dim" or None)
    return typer.style(text, fg=style)
