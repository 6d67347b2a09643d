"""Running a task to its end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger
from prefect.runtime import flow_run as current_run

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.configurations import (
    DevEnvironmentConfiguration,
    TaskConfiguration,
    load_configuration,
)
from prefect_dstack.domain.run_record import RunResult
from prefect_dstack.domain.support import check_support
from prefect_dstack.errors import ConfigurationError, PrefectDstackError
from prefect_dstack.flows.hooks import remove_run_hook
from prefect_dstack.flows.served import is_of_deployment, served_flow
from prefect_dstack.services.run import flow_run_id
from prefect_dstack.services.runs.names import begin_run, holding_name
from prefect_dstack.services.runs.running import run_nodes
from prefect_dstack.store.sources import resolve_infrastructure
from prefect_dstack.store.variables import lookup

__all__ = ["arun_task", "load_of_kind", "load_task", "run_name", "run_task"]

Kind = TypeVar("Kind", TaskConfiguration, DevEnvironmentConfiguration)


def run_name() -> str:
    """Return the name of a flow run, from its parameters."""
    parameters = current_run.get_parameters()
    name = parameters.get("name")
    if name is None:
        with contextlib.suppress(PrefectDstackError):
            name = load_configuration(parameters["configuration"]).name
    return f"run {name or 'something'}"


def load_task(
    configuration: str | Path | dict[str, Any] | TaskConfiguration,
    name: str | None = None,
    profile: str | None = None,
    args: list[str] | None = None,
    *,
    templated: bool = False,
    directory: str | Path | None = None,
) -> TaskConfiguration:
    """Load a task, and refuse what would be ignored.

    Args:
        configuration: The path of a `*.dstack.yml` of `type: task`, YAML text, a mapping or a model.
        name: The name of the run; default: the configuration's.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.
        templated: Whether it is a parameter of a deployment, which Prefect may have filled in.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.

    Returns:
        The task; it has a name.

    Raises:
        ConfigurationError: If it cannot be accepted.
    """
    return load_of_kind(
        TaskConfiguration, configuration, name, profile, args, templated=templated, directory=directory
    )


def load_of_kind(
    kind: type[Kind],
    configuration: str | Path | dict[str, Any] | TaskConfiguration | DevEnvironmentConfiguration,
    name: str | None = None,
    profile: str | None = None,
    args: list[str] | None = None,
    *,
    templated: bool = False,
    directory: str | Path | None = None,
) -> Kind:
    """Load a run of one kind, and refuse what would be ignored; see `load_task`.

    Args:
        kind: The model of the kind.
        configuration: The path of a `*.dstack.yml`, YAML text, a mapping or a model.
        name: The name of the run; default: the configuration's.
        profile: The profile whose settings are used where the configuration has none.
        args: What `${{ run.args }}` stands for.
        templated: Whether it is a parameter of a deployment, which Prefect may have filled in.
        directory: What relative paths start from, instead of the file's directory.

    Raises:
        ConfigurationError: If it cannot be accepted.
    """
    loaded = load_configuration(
        configuration,
        name=name,
        profile=profile,
        args=args or (),
        templated=templated,
        variables=lookup,
        directory=directory,
    )
    wanted = kind.model_fields["type"].default
    if not isinstance(loaded, kind):
        raise ConfigurationError(
            f"is a {loaded.type}, and this takes a {wanted}", source=loaded.source_name, key="type"
        )
    if loaded.name is None:
        raise ConfigurationError(
            f"is missing; add 'name: my-{wanted}', or pass a name", source=loaded.source_name, key="name"
        )
    check_support(loaded)
    return loaded


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
    loaded = load_task(configuration, name, profile, args, templated=is_of_deployment(), directory=directory)
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
