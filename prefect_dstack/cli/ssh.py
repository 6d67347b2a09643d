"""`ssh`: enter a development environment or a task."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from prefect_dstack.cli.completion import complete_run
from prefect_dstack.cli.output import reading
from prefect_dstack.errors import HostNotReadyError

__all__ = ["ssh"]


def ssh(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="The dev environment or task.", autocompletion=complete_run),
    ],
    node: Annotated[int, typer.Option(min=0, help="Which node of a task, by its rank.")] = 0,
) -> None:
    """Enter a dev environment or a task that runs, or run a command in it after --."""
    with reading():
        from prefect_dstack.hosts.identity import machine_identity
        from prefect_dstack.services.runs.entering import check_entry, ssh_entry
        from prefect_dstack.settings import settings
        from prefect_dstack.store.run_records import load_run

        home = settings().home
        check_entry(load_run(name), machine_identity(home), node)
        entry = ssh_entry(name, home, node)
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-ssh-") as directory:
        known_hosts, config = Path(directory, "known_hosts"), Path(directory, "config")
        known_hosts.write_text(f"{name} {entry.host_key}\n")
        config.write_text(entry.block(known_hosts))
        # Ctrl-C is for `ssh`, which gets it too.
        earlier = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            code = subprocess.call(["ssh", "-F", str(config), name, *context.args])
        except FileNotFoundError as error:
            raise HostNotReadyError("this machine has no ssh; install the OpenSSH client") from error
        finally:
            signal.signal(signal.SIGINT, earlier)
    raise typer.Exit(code if code >= 0 else 128 - code)
