"""The commands on services."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_dstack.cli.output import can_ask, confirm, connected, err, out, progress, show_table
from prefect_dstack.errors import ConfigurationError, UserError

if TYPE_CHECKING:
    from prefect_dstack.backends.base import Offer

__all__ = ["register"]

PLAN_LINES = 3
# Nothing of them runs, and whoever deployed them was told.
HIDDEN = ("stopped", "failed")

File = Annotated[Path, typer.Option("--file", "-f", help="The configuration, a *.dstack.yml file.")]
Name = Annotated[str, typer.Argument(help="The name of the service.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def register(application: typer.Typer) -> None:
    """Add the commands on services.

    Args:
        application: The command line.
    """
    for command in (
        apply,
        offer,
        ps,
        logs,
        scale,
        stop,
        rollback,
        promote,
        history,
        delete,
        reconcile,
    ):
        application.command()(command)


def apply(
    file: File,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name; default: the file's.")] = None,
    yes: Yes = False,
    json: Json = False,
    force: Annotated[bool, typer.Option(help="Replace the replicas even if nothing has changed.")] = False,
    profile: Annotated[str | None, typer.Option(help="The profile to use, of .dstack/profiles.yml.")] = None,
    move: Annotated[bool, typer.Option("--move", help="Take over a service of another machine.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for a task to end.")] = False,
    artifact: Annotated[
        list[str] | None,
        typer.Option(help="Copy PATH=LOCAL back from a task that has succeeded; may be given again."),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="What ${{ run.args }} stands for.")
    ] = None,
) -> None:
    """Deploy a service, a gateway or a fleet as its file says."""
    from prefect_dstack.configurations import (
        FleetConfiguration,
        GatewayConfiguration,
        ServiceConfiguration,
        TaskConfiguration,
        load_configuration,
    )
    from prefect_dstack.domain.support import check_support

    configuration = load_configuration(
        file, name=name, args=arguments or (), profile=profile, variables=_variable
    )
    if isinstance(configuration, ServiceConfiguration):
        check_support(configuration)
        _apply_service(configuration, yes=yes, json=json, force=force, move=move)
    elif isinstance(configuration, TaskConfiguration):
        from prefect_dstack.cli.runs import apply_task

        check_support(configuration)
        copied = dict(pair.partition("=")[::2] for pair in artifact or ())
        apply_task(configuration, yes=yes, detach=detach, artifacts=copied)
    elif isinstance(configuration, GatewayConfiguration):
        from prefect_dstack.cli.gateways import apply_gateway

        apply_gateway(configuration, yes=yes)
    elif isinstance(configuration, FleetConfiguration):
        from prefect_dstack.cli import fleets
        from prefect_dstack.domain.fleet_support import check_fleet_support

        check_fleet_support(configuration)
        fleets.apply(configuration, yes=yes)
    else:
        raise ConfigurationError(
            f"a {configuration.type} is not acted on yet; a service, a gateway or a fleet is",
            source=configuration.source_name,
            line=configuration.line_of("type"),
            key="type",
        )


def _watch(service: str) -> None:
    """Start the controller of this machine for a service that needs one, unless somebody watches already."""
    from prefect.settings import get_current_settings

    from prefect_dstack.resident.background import controller_log, start_controller
    from prefect_dstack.settings import settings

    api = get_current_settings().api.url
    if settings().start_controller and api is not None and start_controller(api):
        err.print(
            f"{service}: started a controller to scale it; it writes to {controller_log()}", style="dim"
        )


def _variable(name: str) -> str:
    from prefect_dstack.store.variables import lookup

    return lookup(name)


def _apply_service(configuration: Any, *, yes: bool, json: bool, force: bool, move: bool) -> None:
    if not yes and can_ask():
        connected()
        _show_plan(configuration)
    if not confirm(f"Deploy {configuration.name}?", yes):
        raise typer.Exit(2)
    connected()
    from prefect_dstack.flows.deploy import deploy_service

    with progress():
        endpoint = deploy_service(configuration, force=force, move=move)
    if configuration.scaling is not None:
        _watch(configuration.name)
    if json:
        print(  # noqa: T201
            json_module.dumps(
                {
                    "service": endpoint.service,
                    "revision": endpoint.revision,
                    "endpoint": {
                        "url": endpoint.url,
                        "openai_base_url": endpoint.openai_base_url,
                        "model": endpoint.model,
                    },
                    "replicas": endpoint.replicas,
                    "changed": endpoint.changed,
                    "superseded": endpoint.superseded,
                }
            )
        )
        return
    if endpoint.superseded:
        out.print(f"{configuration.name}: this file was not deployed, a later request came first")
    unchanged = not endpoint.changed and not endpoint.superseded
    verb = "is unchanged (--force replaces it), and serves" if unchanged else "serves"
    out.print(f"[bold]{endpoint.service}@{endpoint.revision}[/bold] {verb} at [bold]{endpoint.url}[/bold]")
    if endpoint.openai_base_url:
        out.print(f"OpenAI base URL: {endpoint.openai_base_url} (model {endpoint.model})")


def _show_plan(configuration: Any) -> None:
    from prefect_dstack.domain.workload import requirements_of
    from prefect_dstack.store.sources import resolve_infrastructure

    offers = resolve_infrastructure().offers(requirements_of(configuration))
    what = configuration.image or "a process"
    out.print(f"{configuration.name}: {configuration.replica_count} x {what}, port {configuration.port}")
    _show_offers(offers[:PLAN_LINES], len(offers))


def _show_offers(offers: Sequence[Offer], of: int) -> None:
    show_table(
        ["BACKEND", "INSTANCE", "REGION", "CPUS", "MEMORY", "GPUS", "SPOT", "PRICE PER HOUR"],
        [
            [
                offer.backend,
                offer.instance_type,
                offer.region,
                f"{offer.cpus:g}",
                f"{offer.memory_gb:.0f}GB",
                ", ".join(f"{gpu.count} x {gpu.name} {gpu.memory_gb:.0f}GB" for gpu in offer.gpus),
                "yes" if offer.spot else "",
                "price unknown" if offer.price is None else f"${offer.price:.4f}",
            ]
            for offer in offers
        ],
    )
    if of > len(offers):
        out.print(f"and {of - len(offers)} more", style="dim")


def offer(
    file: File,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name; default: the file's.")] = None,
    profile: Annotated[str | None, typer.Option(help="The profile to use, of .dstack/profiles.yml.")] = None,
    json: Json = False,
) -> None:
    """Show where a service could run, and at what price; nothing is created."""
    from prefect_dstack.services.preparation import load_service

    configuration = load_service(file, name=name, profile=profile)
    connected()
    from prefect_dstack.domain.workload import requirements_of
    from prefect_dstack.store.sources import resolve_infrastructure

    offers = resolve_infrastructure().offers(requirements_of(configuration))
    if json:
        print(json_module.dumps([one.model_dump(mode="json") for one in offers]))  # noqa: T201
    else:
        _show_offers(offers, len(offers))


def ps(
    json: Json = False,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Stopped and failed services too.")] = False,
) -> None:
    """List the services: what is wanted of each, and what truly runs."""
    connected()
    from prefect_dstack.services.overview import overview

    services = [service for service in overview() if show_all or service.state not in HIDDEN]
    if json:
        print(json_module.dumps([service.model_dump(mode="json") for service in services]))  # noqa: T201
        return
    if not services:
        out.print("no service is deployed; prefect-dstack apply -f FILE deploys one")
        return
    show_table(
        ["SERVICE", "REVISION", "STATE", "REPLICAS", "ENDPOINT", "PROBLEMS"],
        [
            [
                service.name,
                "" if service.revision is None else str(service.revision),
                service.state,
                f"{service.serving}/{service.wanted}",
                service.url or "",
                "; ".join(service.problems),
            ]
            for service in services
        ],
    )


def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it writes from now.")
    ] = False,
    replica: Annotated[int | None, typer.Option(help="Only this replica, counted from 0.")] = None,
    revision: Annotated[
        int | None, typer.Option(help="Only this revision; of one that failed, what was kept of it.")
    ] = None,
    tail: Annotated[int | None, typer.Option(help="Only so many lines from the end.")] = None,
) -> None:
    """Print what the replicas of a service write."""
    connected()
    from prefect_dstack.services.logs import read_logs

    for line in read_logs(name, replica=replica, revision=revision, tail=tail, follow=follow):
        print(line, flush=follow)  # noqa: T201


def scale(
    name: Name,
    replicas: Annotated[int | None, typer.Argument(help="How many replicas, pinned until released.")] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Let the file, or the autoscaler, decide again.")
    ] = False,
    json: Json = False,
) -> None:
    """Change how many replicas a service has; that makes no new revision."""
    if (replicas is None) != release:
        raise UserError("scale: give the number of replicas, or --release")
    connected()
    from prefect_dstack.flows.scale import scale_service

    with progress():
        endpoint = scale_service(name, replicas)
    if json:
        print(endpoint.model_dump_json())  # noqa: T201
        return
    count = len(endpoint.replicas)
    out.print(f"{name}@{endpoint.revision} has {count} {'replica' if count == 1 else 'replicas'}")


def delete(name: Name, yes: Yes = False) -> None:
    """Forget a stopped service, with its history and files."""
    connected()
    from prefect_dstack.flows.delete import delete_service
    from prefect_dstack.store.records import load_record

    load_record(name)
    if not confirm(f"Forget {name} and its history?", yes):
        raise typer.Exit(2)
    with progress():
        delete_service(name)
    out.print(f"{name} is deleted")


def stop(
    name: Name,
    yes: Yes = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on without a gateway that is gone for good.")
    ] = False,
) -> None:
    """Stop a service; its history is kept."""
    connected()
    from prefect_dstack.flows.stop import stop_service
    from prefect_dstack.flows.stop_run import stop_run
    from prefect_dstack.store.records import find_record, load_record
    from prefect_dstack.store.run_records import find_run

    if find_record(name) is None and find_run(name) is not None:
        if not confirm(f"Stop {name}?", yes):
            raise typer.Exit(2)
        with progress():
            stop_run(name)
        out.print(f"{name} is stopped")
        return
    load_record(name)
    if not confirm(f"Stop {name}?", yes):
        raise typer.Exit(2)
    with progress():
        stop_service(name, force)
    out.print(f"{name} is stopped")


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(help="The revision; default: the one that served before.")] = None,
    yes: Yes = False,
) -> None:
    """Go back to an earlier revision."""
    connected()
    from prefect_dstack.flows.rollback import rollback_service
    from prefect_dstack.store.records import load_record

    record = load_record(name)
    revision = record.revision(to) if to is not None else record.previous_revision
    if not confirm(f"Take {name} from revision {record.active} back to {revision.number}?", yes):
        raise typer.Exit(2)
    with progress():
        endpoint = rollback_service(name, revision.number)
    out.print(f"[bold]{name}@{endpoint.revision}[/bold] serves at [bold]{endpoint.url}[/bold]")


def promote(name: Name) -> None:
    """Let a canary that waits for a person take over."""
    connected()
    from prefect_dstack.services.promotion import promote_service

    out.print(f"{name}@{promote_service(name)} takes over; prefect-dstack ps shows how it goes")


def history(name: Name, json: Json = False) -> None:
    """List the revisions of a service: who, when, what changed, how it ended."""
    connected()
    from prefect_dstack.domain.revision import changes_of
    from prefect_dstack.store.records import load_record

    record = load_record(name)
    if json:
        print(  # noqa: T201
            json_module.dumps(
                [
                    revision.model_dump(mode="json", exclude={"workload", "settings"})
                    | {"changes": changes_of(record, revision)}
                    for revision in record.revisions
                ]
            )
        )
        return
    for revision in reversed(record.revisions):
        out.print(
            f"[bold]{name}@{revision.number}[/bold]  {revision.created_at:%Y-%m-%d %H:%M:%S} UTC  "
            f"{revision.created_by}  {revision.outcome}"
        )
        if revision.reason:
            out.print(f"    {revision.reason}", markup=False, style="red")
        for rollback in revision.rollbacks:
            out.print(f"    rolled back to {rollback.at:%Y-%m-%d %H:%M:%S} UTC by {rollback.by}")
        for line in changes_of(record, revision).splitlines()[2:]:
            style = {"+": "green", "-": "red"}.get(line[:1], "dim")
            out.print(f"    {line}", markup=False, style=style)


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    foreign: Annotated[
        bool,
        typer.Option(
            "--foreign", help="Remove also what flow runs have created that this API does not know."
        ),
    ] = False,
) -> None:
    """Make what truly runs what is wanted: replace what is gone, remove what nobody owns."""
    connected()
    from prefect_dstack.flows.reconcile import reconcile_services

    with progress():
        reconcile_services(dry_run=dry_run, foreign=foreign)
