"""`token`: create, list and revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefect_dstack.cli.options import Json
from prefect_dstack.cli.output import connected, err, out, print_json, show_table

if TYPE_CHECKING:
    from prefect_dstack.domain.tokens import Token

__all__ = ["application"]

application = typer.Typer(
    help="What clients must send to services with 'auth'.", no_args_is_help=True, rich_markup_mode=None
)
Service = Annotated[str | None, typer.Option("--service", "-s", help="Only for this service.")]
Gateway = Annotated[
    str | None, typer.Option("--gateway", "-g", help="Only for the services of this gateway.")
]


@application.command()
def create(
    service: Service = None,
    gateway: Gateway = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it is good for, such as 30d; default: for ever.")
    ] = None,
    json: Json = False,
) -> None:
    """Create a token and print it once."""
    connected()
    from prefect_dstack.services.tokens import create_token

    token = create_token(service, gateway, expires)
    if json:
        print_json(_fields(token) | {"token": token.value.get_secret_value()})
        return
    print(token.value.get_secret_value())  # noqa: T201
    err.print(f"token {token.id} opens {_purpose(token)}; it is not shown again", style="dim", markup=False)


@application.command("list")
def list_(service: Service = None, gateway: Gateway = None, json: Json = False) -> None:
    """List the tokens, without their values."""
    connected()
    from prefect_dstack.services.tokens import list_tokens

    tokens = list_tokens(service, gateway)
    if json:
        print_json([_fields(token) for token in tokens])
        return
    if not tokens:
        whose = f" for service {service}" if service else f" for gateway {gateway}" if gateway else ""
        out.print(f"there is no token{whose}; prefect-dstack token create --service NAME makes one")
        return
    show_table(
        ["TOKEN", "OPENS", "CREATED", "BY", "EXPIRES", "STATE"],
        [
            [
                token.id,
                _purpose(token),
                f"{token.created_at:%Y-%m-%d %H:%M}",
                token.created_by,
                f"{token.expires_at:%Y-%m-%d %H:%M}" if token.expires_at else "never",
                _state(token),
            ]
            for token in tokens
        ],
    )


@application.command()
def revoke(token: Annotated[str, typer.Argument(help="The id of the token.")], json: Json = False) -> None:
    """Revoke a token, within a second."""
    connected()
    from prefect_dstack.services.tokens import revoke_token

    revoked = revoke_token(token)
    if json:
        print_json({"id": revoked.id, "revoked": True})
    else:
        out.print(f"token {revoked.id} is revoked")


def _fields(token: Token) -> dict[str, Any]:
    return token.model_dump(mode="json", exclude={"value", "sha256"}) | {"state": _state(token)}


def _state(token: Token) -> str:
    from prefect_dstack.domain.record import now

    return "valid" if token.valid(now()) else "revoked" if token.revoked else "expired"


def _purpose(token: Token) -> str:
    if token.service is not None:
        return f"service {token.service}"
    return "all services" if token.gateway is None else f"all services of gateway {token.gateway}"
