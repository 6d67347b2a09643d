"""What a supervised program has written: over its rotated files, and as it goes on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from prefect_dstack.hosts import supervisor

__all__ = ["read_output"]

PAUSE = 0.2


def read_output(
    directory: Path, *, tail: int | None = None, follow: bool = False, since: datetime | None = None
) -> Iterator[str]:
    """Read the output of a program.

    Args:
        directory: The program's directory.
        tail: Only so many lines from the end; None: all that is kept.
        follow: Go on with what it writes from now, until its supervisor has ended.
        since: Only what was written since then, to the second; None: all that is kept.

    Yields:
        Lines without their end.
    """
    current = directory / "output.log"
    with contextlib.ExitStack() as opened:
        stream = _opened(current, opened)
        # A line may begin in one file and end in the next.
        start = 0.0 if since is None else since.timestamp()
        older = _rotated(directory, stream, start)
        newest = _written_since(stream.read(), directory / "output.times", start) if stream else b""
        *lines, rest = (older + newest).split(b"\n")
        if rest and not follow:
            lines, rest = [*lines, rest], b""
        for line in lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]:
            yield _text(line)
        while follow:
            alive = supervisor.status(directory).alive  # asked first, so that its last words are not missed
            replaced = stream is None or _file(current) not in (None, _file(stream))
            written = stream.read() if stream else b""
            *lines, rest = (rest + written).split(b"\n")
            for line in lines:
                yield _text(line)
            if replaced:
                stream = _opened(current, opened)
            if not replaced or stream is None:
                if not alive:
                    break
                time.sleep(PAUSE)
        if rest:
            yield _text(rest)


def _opened(path: Path, opened: contextlib.ExitStack) -> BinaryIO | None:
    opened.close()
    with contextlib.suppress(FileNotFoundError):
        return opened.enter_context(path.open("rb"))
    return None


def _rotated(directory: Path, current: BinaryIO | None, start: float) -> bytes:
    """Read the older files, oldest first; without the current one, if it was rotated a moment ago."""
    kept = []
    for path in sorted(directory.glob("output.log.*"), key=lambda path: int(path.suffix[1:]), reverse=True):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
            if current is None or _file(stream) != _file(current):
                times = directory / f"output.times{path.suffix}"
                kept.append(_written_since(stream.read(), times, start))
    return b"".join(kept)


def _written_since(data: bytes, times: Path, start: float) -> bytes:
    """Return what of a file was written at a time or later: from the first whole line."""
    if not start:
        return data
    noted = []
    with contextlib.suppress(FileNotFoundError):  # a supervisor of an older version notes no times
        noted = [line.split() for line in times.read_bytes().splitlines()]
    if not noted:
        return data
    for second, position in (entry for entry in noted if len(entry) == 2):
        if int(second) >= int(start):
            place = int(position)
            return data[place if place == 0 else data.rfind(b"\n", 0, place) + 1 :]
    return b""


def _file(of: Path | BinaryIO) -> tuple[int, int] | None:
    try:
        status = of.stat() if isinstance(of, Path) else os.fstat(of.fileno())
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
