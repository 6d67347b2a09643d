"""`apply`: what a file says becomes what is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prefect_dstack.cli.options import ApplyOptions, Json, Profile, Yes
from prefect_dstack.errors import ConfigurationError

__all__ = ["HANDLERS", "apply", "load"]


def apply(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="The configuration, a directory that has one, or - for standard input."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="The configuration; default: the *.dstack.yml in this directory."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name; default: the file's.")] = None,
    yes: Yes = False,
    json: Json = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the replicas even if nothing has changed.")
    ] = False,
    profile: Profile = None,
    move: Annotated[bool, typer.Option("--move", help="Take over a service of another machine.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for a task or dev environment to end.")
    ] = False,
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=LOCAL",
            help="Copy PATH=LOCAL back from a task that has succeeded; may be given again.",
        ),
    ] = None,
) -> None:
    """Apply a file: a service, a task, a dev environment, a gateway or a fleet."""
    options = ApplyOptions(
        yes=yes, json=json, force=force, move=move, detach=detach, artifacts=_parsed(artifact or [])
    )
    from prefect_dstack.cli.files import choose_source

    source = choose_source(file, path)
    configuration = load(source, name=name, profile=profile, arguments=context.args)
    if getattr(configuration, "schedule", None) is not None:
        from prefect_dstack.cli.schedules import apply_schedule

        _check(configuration)
        apply_schedule(configuration, source, options, profile=profile, arguments=context.args)
        return
    handler = HANDLERS.get(configuration.type)
    if handler is None:
        raise ConfigurationError(
            f"a {configuration.type} is not acted on yet; {', '.join(HANDLERS)} are",
            source=configuration.source_name,
            line=configuration.line_of("type"),
            key="type",
        )
    handler(configuration, options)


def load(source: Path | str, *, name: str | None, profile: str | None, arguments: list[str]) -> Any:
    """Load the configuration that a command line names.

    Args:
        source: The path, or the text from standard input.
        name: Overrides the configuration's name.
        profile: The profile to use.
        arguments: What `${{ run.args }}` stands for.
    """
    from prefect_dstack.configurations import load_configuration

    return load_configuration(source, name=name, args=arguments, profile=profile, variables=_variable)


def _variable(name: str) -> str:
    from prefect_dstack.store.variables import lookup

    return lookup(name)


def _parsed(artifacts: list[str]) -> dict[str, str]:
    from prefect_dstack.cli.runs import parse_artifacts

    return parse_artifacts(artifacts)


def _service(configuration: Any, options: ApplyOptions) -> None:
    from prefect_dstack.cli.deploy import apply_service

    _check(configuration)
    apply_service(configuration, options)


def _task(configuration: Any, options: ApplyOptions) -> None:
    from prefect_dstack.cli.runs import apply_task

    _check(configuration)
    apply_task(configuration, options)


def _dev_environment(configuration: Any, options: ApplyOptions) -> None:
    from prefect_dstack.cli.runs import apply_dev_environment

    _check(configuration)
    apply_dev_environment(configuration, options)


def _gateway(configuration: Any, options: ApplyOptions) -> None:
    from prefect_dstack.cli.gateways import apply_gateway

    apply_gateway(configuration, yes=options.yes, json=options.json)


def _fleet(configuration: Any, options: ApplyOptions) -> None:
    from prefect_dstack.cli.fleets import apply as apply_fleet
    from prefect_dstack.domain.fleet_support import check_fleet_support

    check_fleet_support(configuration)
    apply_fleet(configuration, yes=options.yes, json=options.json)


def _check(configuration: Any) -> None:
    from prefect_dstack.domain.support import check_runnable

    check_runnable(configuration, "give --name")


# What acts on each type of configuration.
HANDLERS: Mapping[str, Callable[[Any, ApplyOptions], None]] = {
    "service": _service,
    "task": _task,
    "dev-environment": _dev_environment,
    "gateway": _gateway,
    "fleet": _fleet,
}
