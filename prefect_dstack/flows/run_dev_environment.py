"""Keeping a development environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from prefect_dstack.configurations import DevEnvironmentConfiguration
from prefect_dstack.domain.run_record import RunResult
from prefect_dstack.flows.hooks import remove_run_hook
from prefect_dstack.flows.run_task import run_name
from prefect_dstack.flows.served import is_of_deployment, served_flow
from prefect_dstack.services.loading import load_of_kind
from prefect_dstack.services.run import flow_run_id
from prefect_dstack.services.runs.names import begin_run, holding_name
from prefect_dstack.services.runs.running import run_nodes
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["run_dev_environment"]


@served_flow(
    name="run-dev-environment",
    flow_run_name=run_name,
    on_cancellation=[remove_run_hook],
    on_crashed=[remove_run_hook],
)
def run_dev_environment(
    configuration: str | Path | dict[str, Any] | DevEnvironmentConfiguration,
    name: str | None = None,
    profile: str | None = None,
    args: list[str] | None = None,
    directory: str | Path | None = None,
) -> RunResult:
    """Keep a development environment until it is stopped, or nobody has been connected for too long.

    It provisions a machine, runs the `init` commands, lets `ssh NAME` in from this machine, and takes all of
    it down at the end. Its log is that of the flow run.

    Args:
        configuration: The path of a `*.dstack.yml` of `type: dev-environment`, YAML text, a mapping or a
            model.
        name: The name of the environment; default: the configuration's.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.

    Returns:
        How it ended: its exit code is 0.

    Raises:
        RunFailedError: If a command of `init` has failed, or the environment was lost.
        UserError: If the configuration, or what it runs, cannot work as it is.

    Example:
        ```python
        from prefect_dstack.flows.run_dev_environment import run_dev_environment

        run_dev_environment("workbench.dstack.yml")
        ```
    """
    loaded = load_of_kind(
        DevEnvironmentConfiguration,
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
        return run_nodes(loaded, record, infrastructure, flow_run, log)
