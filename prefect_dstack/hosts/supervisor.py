"""Keeps a program running on this machine, whoever started it has long gone.

Each program has a directory of its own, and a supervisor process of its own that holds a lock there: it
restarts the program after a crash, rotates its output, and takes its whole process group down at the end.
The environment, which may hold secrets, is handed over through a pipe and is never on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from prefect_dstack.errors import HostError

__all__ = ["Program", "ProgramStatus", "remove", "start", "status", "stop"]

SUPERVISE = Path(__file__).with_name("supervise.py")


class Program(BaseModel):
    """What to keep running."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arguments: list[str] = Field(
        min_length=1, description="The program and its arguments; no shell reads them."
    )
    environment: dict[str, str | SecretStr] = Field(
        default_factory=dict, description="The whole environment of the program, nothing is inherited."
    )
    working_directory: Path = Field(description="The directory the program starts in.")
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1"] = Field(
        default="SIGTERM", description="The signal that asks the process group to end."
    )
    restart: bool = Field(default=True, description="Whether it is started again when it ends by itself.")
    grace: float = Field(default=10.0, ge=0, description="Seconds between the stop signal and SIGKILL.")
    log_bytes: int = Field(default=10_000_000, gt=0, description="Size at which the output is rotated.")
    log_files: int = Field(default=3, ge=1, description="How many rotated output files are kept.")


class ProgramStatus(BaseModel):
    """What a supervisor knows of its program."""

    model_config = ConfigDict(frozen=True)

    state: Literal["absent", "starting", "running", "waiting", "stopping", "stopped", "lost"] = Field(
        description="`waiting`: crashed, about to be restarted. `lost`: its supervisor is gone."
    )
    pid: int | None = Field(default=None, description="The program's process and process group id.")
    restarts: int = Field(default=0, description="How often it was restarted after it ended by itself.")
    exit_code: int | None = Field(default=None, description="How it last ended; negative: by that signal.")
    started_at: float | None = Field(default=None, description="When it was last started, in Unix seconds.")

    @property
    def alive(self) -> bool:
        """Whether a supervisor takes care of the program."""
        return self.state in ("starting", "running", "waiting", "stopping")


def start(directory: Path, program: Program) -> None:
    """Start a program, unless its directory has one already.

    Args:
        directory: Where its status, output and lock are kept; made if missing, for this user alone.
        program: What to run.

    Raises:
        HostError: If the supervisor cannot be started.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _supervisor(directory) is not None:
        return
    specification = program.model_dump(mode="json") | {"environment": _revealed(program.environment)}
    outcome = subprocess.run(
        [sys.executable, "-I", "-S", str(SUPERVISE), str(directory.resolve())],
        input=json.dumps(specification).encode(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    if outcome.returncode != 0 and _supervisor(directory) is None:
        reason = outcome.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise HostError(f"{directory}: cannot start a supervisor: {reason[0]}")


def status(directory: Path) -> ProgramStatus:
    """Return how a program is.

    Args:
        directory: The program's directory.

    Returns:
        Its status; `absent` if there never was one, `lost` if its supervisor was killed.
    """
    supervised = _supervisor(directory) is not None
    try:
        known = ProgramStatus.model_validate_json((directory / "status.json").read_text())
    except (OSError, ValueError):
        return ProgramStatus(state="starting" if supervised else "absent")
    # Asked once more, as it may have been started between the two looks.
    if known.alive and not supervised and _supervisor(directory) is None:
        return known.model_copy(update={"state": "lost", "pid": None})
    return known


def stop(directory: Path, grace: float | None = None) -> None:
    """Stop a program with its whole process group, and its supervisor.

    Args:
        directory: The program's directory.
        grace: Seconds between the stop signal and SIGKILL; default: the program's own.

    Raises:
        HostError: If it is still there well after the grace period.
    """
    if grace is not None and directory.is_dir():
        (directory / "grace").write_text(str(grace))
    patience = (grace if grace is not None else 60.0) + 15.0
    asked = False
    for _ in _until(patience):
        supervisor = _supervisor(directory)
        if supervisor is None:
            return
        if supervisor and not asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGTERM)
            asked = True
    raise HostError(f"{directory}: the supervisor did not end within {patience:.0f} s, kill it by hand")


def remove(directory: Path, last: str = "") -> None:
    """Forget a program that has stopped.

    Args:
        directory: The program's directory; gone afterwards.
        last: A file in it that goes after all others.
    """
    with contextlib.suppress(FileNotFoundError):
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != last:
                entry.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _revealed(environment: Mapping[str, str | SecretStr]) -> dict[str, str]:
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in environment.items()
    }


def _supervisor(directory: Path) -> int | None:
    """Find the process that holds the directory's lock; 0 while it has not said who it is."""
    try:
        descriptor = os.open(directory / "supervisor.lock", os.O_RDWR)
    except OSError:
        return None
    try:
        # Shared, so that those who look do not take each other for the supervisor.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        written = os.read(descriptor, 32)
        return int(written) if written else 0
    else:
        return None
    finally:
        os.close(descriptor)


def _until(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
