"""A task or a development environment in a process of its own, which outlives the terminal that began it.

Run as `python -m prefect_dstack.cli.background`; the configuration comes as JSON from standard input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

__all__ = ["main", "start"]


def start(
    configuration: Any, artifacts: dict[str, str], log: Path
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a task or a development environment in the background.

    Args:
        configuration: What to run; it has a name.
        artifacts: What is copied back: local paths by those in the task.
        log: Where its progress and its output go; what another one writes there goes on in a file without a
            name.

    Returns:
        The process, which runs on when this one ends, and a file that reads what it writes.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    payload = {
        "configuration": configuration.model_dump(mode="json", exclude_unset=True)
        | {"type": configuration.type},
        "name": configuration.name,
        "directory": str(configuration.directory),
        "source": configuration.source_name,
        "artifacts": artifacts,
    }
    # Of two that are started at once, only one will run, and each has something to say.
    descriptor, own = tempfile.mkstemp(prefix=".new-", dir=log.parent)
    output = open(own, "rb")  # noqa: SIM115, PTH123 - it is the caller's
    Path(own).replace(log)
    with open(descriptor, "wb") as stream:  # noqa: PTH123
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect_dstack.cli.background"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    if process.stdin is None:
        raise AssertionError  # pragma: no cover - it was asked for
    process.stdin.write(json.dumps(payload).encode())
    process.stdin.close()
    return process, output


def main() -> None:
    """Run what standard input describes, and exit as it does."""
    # What was started is taken down: within a flow Prefect gets the signal, and raises it there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    payload = json.load(sys.stdin)
    os.chdir(payload["directory"])
    from prefect_dstack.cli.output import connected, console_error, plain_progress
    from prefect_dstack.configurations import (
        DevEnvironmentConfiguration,
        TaskConfiguration,
        load_configuration,
    )
    from prefect_dstack.errors import PrefectDstackError

    try:
        connected()
        loaded = load_configuration(
            payload["configuration"], name=payload["name"], directory=payload["directory"]
        )
        if not isinstance(loaded, (TaskConfiguration, DevEnvironmentConfiguration)):
            raise AssertionError  # pragma: no cover - `start` takes nothing else
        placed = loaded.placed(directory=Path(payload["directory"]), source_name=payload["source"], lines={})
        with plain_progress():
            if isinstance(placed, TaskConfiguration):
                from prefect_dstack.flows.run_task import run_task

                run_task(placed, artifacts=payload["artifacts"])
            else:
                from prefect_dstack.flows.run_dev_environment import run_dev_environment

                run_dev_environment(placed)
    except PrefectDstackError as error:
        console_error(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
