"""`doctor`: what is missing here and how to get it."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_dstack.cli.options import Json
from prefect_dstack.cli.output import connected, out, print_json

__all__ = ["doctor"]

MARKS = {
    "ok": "[green]ok[/green]     ",
    "missing": "[yellow]missing[/yellow]",
    "problem": "[red]problem[/red]",
}


def doctor(
    iam_policy: Annotated[
        bool, typer.Option("--iam-policy", help="Print the least IAM policy that the AWS backend needs.")
    ] = False,
    regions: Annotated[
        list[str] | None,
        typer.Option("--region", help="A region for the policy; default: the configured ones."),
    ] = None,
    json: Json = False,
) -> None:
    """Check what is missing on this machine, and how to get it."""
    if iam_policy:
        _print_policy(regions)
        return
    from prefect_dstack.diagnostics import diagnose

    findings = diagnose()
    if json:
        print_json(
            [
                {key: getattr(it, key) for key in ("level", "summary", "detail", "resolution")}
                for it in findings
            ]
        )
    for finding in () if json else findings:
        out.print(f"{MARKS[finding.level]}  {finding.summary}: ", end="")
        out.print(finding.detail, markup=False)
        if finding.resolution:
            out.print(f"         {finding.resolution}", markup=False)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _print_policy(regions: list[str] | None) -> None:
    import json

    from pydantic import ValidationError

    from prefect_dstack.backends.aws import AwsSettings, least_policy
    from prefect_dstack.errors import NotFoundError, UserError

    if regions:
        try:
            settings = AwsSettings(regions=tuple(regions))
        except ValidationError as error:
            raise UserError(f"--region {' '.join(regions)}: write names such as eu-west-1") from error
    else:
        connected()
        from prefect_dstack.backends.aws import AwsBackend
        from prefect_dstack.store.sources import resolve_infrastructure

        backend = resolve_infrastructure().backends.get("aws")
        if not isinstance(backend, AwsBackend):
            raise NotFoundError("no AWS account is configured: name a region with --region")
        settings = backend.settings
    print(json.dumps(least_policy(settings), indent=2))  # noqa: T201
