"""`doctor`: what is missing here and how to get it."""

from __future__ import annotations

import typer

from prefect_dstack.cli.output import out

__all__ = ["doctor"]

MARKS = {
    "ok": "[green]ok[/green]     ",
    "missing": "[yellow]missing[/yellow]",
    "problem": "[red]problem[/red]",
}


def doctor() -> None:
    """Say what is missing on this machine, and how to get it."""
    from prefect_dstack.diagnostics import diagnose

    findings = diagnose()
    for finding in findings:
        out.print(f"{MARKS[finding.level]}  {finding.summary}: ", end="")
        out.print(finding.detail, markup=False)
        if finding.resolution:
            out.print(f"         {finding.resolution}", markup=False)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
