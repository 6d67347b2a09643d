"""What a container has written, and writes: its output as the engine keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docker.models.containers import Container

__all__ = ["container_output"]


def container_output(
    container: Container, *, tail: int | None = None, follow: bool = False, since: datetime | None = None
) -> Iterator[str]:
    """Read the output of a container.

    Args:
        container: The container.
        tail: Only so many lines from the end; None: all that is kept.
        follow: Go on with what it writes from now, until it ends.
        since: Only what was written since then; None: all that is kept.

    Yields:
        Lines without their end.
    """
    output = container.logs(
        stream=True,
        follow=follow,
        tail="all" if tail is None else tail,
        since=None if since is None else since.timestamp(),
    )
    rest = b""
    for part in output:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
