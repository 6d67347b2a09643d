"""`logs`: what replicas write."""

from __future__ import annotations

from typing import Annotated

import typer

from prefect_dstack.cli.completion import complete_revision, complete_service
from prefect_dstack.cli.output import reading
from prefect_dstack.errors import UserError

__all__ = ["logs"]


def logs(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="The names of services.", autocompletion=complete_service),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what they write from now.")
    ] = False,
    replica: Annotated[int | None, typer.Option(help="Only this replica, counted from 0.")] = None,
    revision: Annotated[
        int | None,
        typer.Option(
            help="Only this revision; of one that failed, what was kept of it.",
            autocompletion=complete_revision,
        ),
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", "-t", min=0, help="Only so many lines from the end of each.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", "-s", help="Only what was written since then: 10m, 2h, or a time."),
    ] = None,
    requests: Annotated[
        bool,
        typer.Option("--requests", help="The service's access log instead: a line of JSON for each request."),
    ] = False,
) -> None:
    """Print what the replicas of services write."""
    if len(names) > 1 and (replica is not None or revision is not None or requests):
        raise UserError(
            "logs: --replica, --revision and --requests are for one service, and several are named"
        )
    from prefect_dstack.cli.moments import parse_moment

    moment = None if since is None else parse_moment(since, "--since")
    with reading():
        if requests:
            from prefect_dstack.services.request_log import read_requests

            for line in read_requests(
                names[0], replica=replica, revision=revision, tail=tail, follow=follow, since=moment
            ):
                print(line, flush=follow)  # noqa: T201
            return
        from prefect_dstack.cli.runs import is_run
        from prefect_dstack.services.logs import read_logs_of
        from prefect_dstack.services.runs.logs import read_run_logs

        if len(names) == 1 and is_run(names[0]):
            for line in read_run_logs(names[0], tail=tail, follow=follow, since=moment):
                print(line, flush=follow)  # noqa: T201
            return
        lines = read_logs_of(
            names, replica=replica, revision=revision, tail=tail, follow=follow, since=moment
        )
        for line in lines:
            print(line, flush=follow)  # noqa: T201
