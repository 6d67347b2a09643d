"""A service of a file becomes one that serves, after a look at what that changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from prefect_dstack.cli.offers import show_offers
from prefect_dstack.cli.output import can_ask, confirm, connected, err, out, print_json, progress
from prefect_dstack.cli.schedules import end_schedule

if TYPE_CHECKING:
    from prefect_dstack.cli.options import ApplyOptions
    from prefect_dstack.configurations import ServiceConfiguration
    from prefect_dstack.domain.record import Endpoint
    from prefect_dstack.services.planned_changes import PlannedChanges

__all__ = ["apply_service", "show_endpoint"]

PLAN_LINES = 3
FILE_LINES = 10
COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def apply_service(configuration: ServiceConfiguration, options: ApplyOptions) -> None:
    """Deploy a service.

    Args:
        configuration: The service; it has a name.
        options: How.
    """
    question = f"Deploy {configuration.name}?"
    if not options.yes and can_ask():
        connected()
        question = _show_plan(configuration, options)
    if not confirm(question, options.yes):
        raise typer.Exit(2)
    connected()
    from prefect_dstack.flows.deploy import deploy_service

    with progress():
        endpoint = deploy_service(configuration, force=options.force, move=options.move)
    end_schedule(endpoint.service)
    if configuration.needs_controller:
        _watch(endpoint.service)
    if options.json:
        print_json(_fields(endpoint))
        return
    if endpoint.superseded:
        out.print(f"{configuration.name}: this file was not deployed, a later request came first")
    show_endpoint(endpoint)


def _watch(service: str) -> None:
    """Start the controller of this machine for a service that needs one, unless one runs already."""
    from prefect.settings import get_current_settings

    from prefect_dstack.resident.background import controller_log, start_controller
    from prefect_dstack.settings import settings

    api = get_current_settings().api.url
    if settings().start_controller and api is not None and start_controller(api):
        err.print(
            f"{service}: started a controller to watch it; it writes to {controller_log()}", style="dim"
        )


def show_endpoint(endpoint: Endpoint) -> None:
    """Print where a service answers.

    Args:
        endpoint: Where.
    """
    from prefect_dstack.services.promotion import how_to_approve

    waiting = endpoint.waiting
    if waiting is not None:
        name = endpoint.service
        out.print(f"[bold]{name}@{waiting.revision}[/bold] waits for approval until {waiting.until}")
        out.print(
            f"It answers at [bold]{waiting.private_url}[/bold] on {waiting.machine}, and gets no requests"
        )
        if endpoint.revision != waiting.revision:
            asked = f"prefect-dstack call {name} / --revision {waiting.revision}"
            out.print(f"From anywhere, with a token: {asked}", markup=False)
        out.print(f"Decide with: {how_to_approve(name)}")
        if endpoint.revision == waiting.revision:
            return
    unchanged = waiting is None and not endpoint.changed and not endpoint.superseded
    verb = "is unchanged (--force replaces it), and serves" if unchanged else "serves"
    out.print(f"[bold]{endpoint.service}@{endpoint.revision}[/bold] {verb} at [bold]{endpoint.url}[/bold]")
    if endpoint.openai_base_url:
        out.print(f"OpenAI base URL: {endpoint.openai_base_url} (model {endpoint.model})")
    if endpoint.gateway_openai_base_url:
        out.print(f"All models of the gateway: {endpoint.gateway_openai_base_url}")


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "service": endpoint.service,
        "revision": endpoint.revision,
        "endpoint": {
            "url": endpoint.url,
            "openai_base_url": endpoint.openai_base_url,
            "gateway_openai_base_url": endpoint.gateway_openai_base_url,
            "model": endpoint.model,
        },
        "replicas": endpoint.replicas,
        "changed": endpoint.changed,
        "superseded": endpoint.superseded,
        "waiting": None if endpoint.waiting is None else endpoint.waiting.model_dump(mode="json"),
    }


def _show_plan(configuration: ServiceConfiguration, options: ApplyOptions) -> str:
    """Show what a deployment would change, and return what to ask."""
    from prefect_dstack.domain.groups import group_configurations, group_names
    from prefect_dstack.domain.workload import requirements_of
    from prefect_dstack.services.images import default_image
    from prefect_dstack.services.planned_changes import planned_changes
    from prefect_dstack.store.sources import resolve_infrastructure

    infrastructure = resolve_infrastructure()
    plan = planned_changes(configuration, infrastructure, force=options.force, move=options.move)
    runs = dict(zip(group_names(configuration), group_configurations(configuration), strict=True))
    for group, run in runs.items():
        what = run.image or default_image(run) or "a process"
        count = plan.desired.groups.get(group, plan.desired.replicas)
        out.print(f"[bold]{configuration.name}[/bold]: {f'{group}: ' if group else ''}", end="")
        out.print(f"{count} x {what}, port {configuration.port}", markup=False)
    for line in [*plan.difference, *plan.files[:FILE_LINES]]:
        out.print(f"    {line}", markup=False, style=COLOURS.get(line[:1], "dim"))
    if len(plan.files) > FILE_LINES:
        out.print(f"    and {len(plan.files) - FILE_LINES} more files", style="dim")
    if plan.effect in ("first", "replicas"):
        for group, run in runs.items():
            offers = infrastructure.offers(requirements_of(run))
            show_offers(offers[:PLAN_LINES], len(offers), group)
    err.print(f"{configuration.name}: {_effect(plan)}", style="dim", markup=False)
    verb = "Deploy" if plan.effect != "nothing" else "Nothing would change. Deploy"
    return f"{verb} {configuration.name}?"


def _effect(plan: PlannedChanges) -> str:
    if plan.effect == "first":
        return "nothing serves yet"
    if plan.effect == "replicas":
        return f"new replicas take the place of those of revision {plan.active}, which serve until then"
    if plan.effect == "settings":
        return f"the replicas of revision {plan.active} stay, with new settings"
    if plan.effect == "scale":
        before = 0 if plan.before is None else plan.before.summary
        return f"from {before} to {plan.desired.summary} replicas; that makes no new revision"
    return f"revision {plan.active} serves just this"
