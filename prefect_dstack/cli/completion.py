"""Names for completion in a shell: from a cache, which another process refreshes.

Who presses TAB waits for no Prefect API, except the first time, and then not for long. Importing Prefect
alone would take longer than anybody waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

__all__ = ["complete_revision", "complete_run", "complete_service", "main", "remember"]

# Seconds after which what is known is asked for again.
FRESH = 10.0
# Seconds that the first TAB waits.
PATIENCE = 4.0
POLL = 0.05


def complete_service(incomplete: str) -> list[str]:
    """Return the names of services that begin with what was typed.

    Args:
        incomplete: What was typed.
    """
    return _beginning(incomplete, _known().get("services", {}))


def complete_run(incomplete: str) -> list[str]:
    """Return the names of services and tasks that begin with what was typed.

    Args:
        incomplete: What was typed.
    """
    known = _known()
    return _beginning(incomplete, [*known.get("services", {}), *known.get("runs", [])])


def complete_revision(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the revisions of the service that was typed.

    Args:
        ctx: What was typed before.
        incomplete: What was typed of the revision.
    """
    services = _known().get("services", {})
    # While an option waits for its value, nothing is parsed yet of what stands before it.
    typed = [*(ctx.params.get("names") or []), ctx.params.get("name"), *ctx.args]
    revisions: list[int] = next((services[name] for name in typed if name in services), [])
    return _beginning(incomplete, [str(number) for number in reversed(revisions)])


def remember(services: Mapping[str, Sequence[int]], runs: Iterable[str] = ()) -> None:
    """Keep what a command has learned of the names of services.

    Args:
        services: Their revisions by name.
        runs: The names of tasks.
    """
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"services": services, "runs": list(runs)}))
        draft.replace(path)


def main() -> None:
    """Ask the Prefect API for all names, and keep them."""
    import fcntl

    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as stream, contextlib.suppress(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _refresh()


def _refresh() -> None:
    from prefect.settings import get_current_settings

    from prefect_dstack.api import join_local_server

    join_local_server()
    if get_current_settings().api.url is None:  # no server is started for a TAB
        remember({})
        return
    from prefect_dstack.store.records import all_records
    from prefect_dstack.store.run_records import all_runs

    services = {record.name: [it.number for it in record.revisions] for record in all_records()}
    remember(services, [run.name for run in all_runs()])


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _known() -> dict[str, Any]:
    path = _path()
    age = _age(path)
    if age is None or age > FRESH:
        refresher = subprocess.Popen(
            [sys.executable, "-m", "prefect_dstack.cli.completion"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("_PREFECT_DSTACK", "_TYPER", "COMP_"))
            },
        )
        deadline = time.monotonic() + PATIENCE
        while age is None and _age(path) is None and time.monotonic() < deadline:
            if refresher.poll() is not None:
                break
            time.sleep(POLL)
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(path.read_text()))
    return {}


def _age(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return None


# As they are when the command line starts: later, a local server may have given its URL to this process.
NAMES = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME", "PREFECT_DSTACK_HOME")
ASKED = "\n".join(os.environ.get(name, "") for name in NAMES)


def _path() -> Path:
    """Return the cache of the API that would be asked."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-dstack"
    return directory / f"names-{hashlib.sha256(ASKED.encode()).hexdigest()[:16]}.json"


if __name__ == "__main__":
    main()
