"""Running a task to its end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run as current_run

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.configurations import (
    TaskConfiguration,
    load_configuration,
)
from prefect_dstack.domain.run_record import RunResult
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.flows.hooks import remove_run_hook
from prefect_dstack.flows.served import is_of_deployment, served_flow
from prefect_dstack.services.loading import load_of_kind
from prefect_dstack.services.run import flow_run_id
from prefect_dstack.services.runs.names import begin_run, holding_name
from prefect_dstack.services.runs.running import run_nodes
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["arun_task", "run_name", "run_task"]


def run_name() -> str:
    """Return the name of a flow run, from its parameters."""
    parameters = current_run.get_parameters()
    name = parameters.get("name")
    if name is None:
        with contextlib.suppress(PrefectDstackError):
            name = load_configuration(parameters["configuration"]).name
    return f"run {name or 'something'}"


@served_flow(
    name="run-task",
    flow_run_name=run_name,
    on_cancellation=[remove_run_hook],
    on_crashed=[remove_run_hook],
)
def run_task(
    configuration: str | Path | dict[str, Any] | TaskConfiguration,
    name: str | None = None,
    profile: str | None = None,
    args: list[str] | None = None,
    artifacts: dict[str, str] | None = None,
    directory: str | Path | None = None,
) -> RunResult:
    """Run a task to its end: provision its nodes, run its commands, and take all of it down.

    Its log is that of the flow run.

    Args:
        configuration: The path of a `*.dstack.yml` of `type: task`, YAML text, a mapping or a model.
        name: The name of the run; default: the configuration's.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.
        artifacts: What is copied back when it has succeeded: local paths by those in the task, where
            relative ones start from where its commands run.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.

    Returns:
        How it ended: its exit code is 0.

    Raises:
        RunFailedError: If it ended with another exit code, took too long, or was stopped.
        UserError: If the configuration, or what it runs, cannot work as it is.

    Example:
        ```python
        from prefect import flow
        from prefect_dstack import deploy_service, run_task


        @flow
        def train_and_deploy() -> str:
            run_task("train.dstack.yml", artifacts={"model.bin": "model.bin"})
            return deploy_service("serve.dstack.yml").url
        ```
    """
    loaded = load_of_kind(
        TaskConfiguration,
        configuration,
        name=name,
        profile=profile,
        args=args,
        templated=is_of_deployment(),
        directory=directory,
    )
    log = get_run_logger()
    infrastructure = resolve_infrastructure()
    flow_run = flow_run_id()
    with holding_name(loaded.name or "", flow_run, log) as lease:
        record = begin_run(loaded, infrastructure, flow_run, lease)
        return run_nodes(
            loaded,
            record,
            infrastructure,
            flow_run,
            log,
            artifacts={path: Path(target) for path, target in (artifacts or {}).items()},
        )


arun_task = asynchronous(run_task)
