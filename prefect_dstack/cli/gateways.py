"""`gateway`: create, list and delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.options import Json, Yes
from prefect_dstack.cli.output import confirm, connected, out, print_json, progress, show_table

if TYPE_CHECKING:
    from prefect_dstack.configurations import GatewayConfiguration
    from prefect_dstack.services.gateway_overview import GatewayOverview

__all__ = ["application", "apply_gateway"]

application = typer.Typer(
    help="The reverse proxies in front of services.", no_args_is_help=True, rich_markup_mode=None
)


def apply_gateway(configuration: GatewayConfiguration, *, yes: bool, json: bool = False) -> None:
    """Create a gateway, or bring it up to date.

    Args:
        configuration: The gateway.
        yes: Whether not to ask.
        json: Whether to print JSON.
    """
    connected()
    if not yes and not confirm(_question(configuration), yes):
        raise typer.Exit(2)
    from prefect_dstack.flows.gateways import create_gateway, missing_records

    with progress():
        name = create_gateway(configuration)
    missing = missing_records(name)
    if json:
        print_json({"name": name, "missing_dns_records": missing})
        return
    out.print(f"gateway {name} is ready")
    for record in missing:
        out.print(f"create this DNS record: {record}", highlight=False)


def _question(configuration: GatewayConfiguration) -> str:
    """Ask for confirmation of a gateway, with its price where it has one."""
    what = f"Create gateway {configuration.name}, or bring it up to date"
    from prefect_dstack.store.sources import resolve_infrastructure

    gateway = resolve_infrastructure().new_gateway(configuration)
    gateway.require_backend()
    if gateway.machines is None:
        return f"{what} ({configuration.backend})?"
    offer = gateway.machines.offer(configuration)
    price = "price unknown" if offer.price is None else f"${offer.price:.4g} an hour"
    return f"{what}: {offer.instance_type} in {offer.region}, {price}?"


@application.command()
def create(
    file: Annotated[Path, typer.Option("--file", "-f", help="The configuration, of type: gateway.")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name; default: the file's.")] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Create a gateway, or bring it up to date with its file."""
    from prefect_dstack.configurations import GatewayConfiguration, load_configuration
    from prefect_dstack.errors import ConfigurationError

    configuration = load_configuration(file, name=name)
    if not isinstance(configuration, GatewayConfiguration):
        raise ConfigurationError(
            f"is a {configuration.type}, and this takes a gateway", source=file, key="type"
        )
    apply_gateway(configuration, yes=yes, json=json)


@application.command("list")
def list_(json: Json = False) -> None:
    """List the gateways and what they route."""
    connected()
    from prefect_dstack.services.gateway_overview import gateway_overview

    rows = gateway_overview()
    if json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    if not rows:
        out.print("no gateway runs; the one of this machine starts with the first service")
        return
    with_models = any(row.openai_base_url for row in rows)
    show_table(
        [
            *("GATEWAY", "BACKEND", "ADDRESS", "DOMAIN", "CERTIFICATE", "STATE", "SERVICES"),
            *(["MODELS"] if with_models else []),
        ],
        [
            [
                row.name,
                row.backend,
                row.address,
                row.domain or "",
                _days_left(row),
                row.state,
                ", ".join(row.services),
                *([row.openai_base_url or ""] if with_models else []),
            ]
            for row in rows
        ],
    )


def _days_left(row: GatewayOverview) -> str:
    if not row.certificates:
        return ""
    days = min(certificate.days_left() for certificate in row.certificates)
    return "expired" if days < 0 else f"{days} days left"


@application.command()
def ca() -> None:
    """Print the certificate that clients of gateways with self-signed certificates must trust."""
    connected()
    from prefect_dstack.store.authority import authority

    print(authority().certificate, end="")  # noqa: T201


@application.command()
def delete(
    name: Annotated[str, typer.Argument(help="The name of the gateway.")],
    yes: Yes = False,
    force: Annotated[
        bool, typer.Option("--force", help="Forget it even if its machine cannot be reached.")
    ] = False,
    json: Json = False,
) -> None:
    """Delete a gateway with all that was made for it."""
    connected()
    from prefect_dstack.flows.gateways import delete_gateway

    if not confirm(f"Delete gateway {name}?", yes):
        raise typer.Exit(2)
    with progress():
        delete_gateway(name, force)
    if json:
        print_json({"name": name, "deleted": True})
    else:
        out.print(f"gateway {name} is deleted")
