"""What is known of services, and what their replicas write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from prefect_dstack.api import connected
from prefect_dstack.asynchronous import asynchronous, asynchronous_iterator
from prefect_dstack.domain.record import Endpoint
from prefect_dstack.errors import ConflictError
from prefect_dstack.services import logs
from prefect_dstack.services.history import RevisionOverview, history_of
from prefect_dstack.services.overview import ServiceOverview, overview
from prefect_dstack.store.records import load_record

__all__ = [
    "aget_endpoint",
    "aget_service",
    "alist_revisions",
    "alist_services",
    "aread_logs",
    "get_endpoint",
    "get_service",
    "list_revisions",
    "list_services",
    "read_logs",
]


@connected
def list_services(names: Sequence[str] = ()) -> list[ServiceOverview]:
    """List services: what is wanted of each, and what actually runs.

    Args:
        names: Only these; default: all, stopped and failed ones too.

    Returns:
        The services by name.

    Raises:
        NotFoundError: If there is no service of such a name.
    """
    return overview(names)


@connected
def get_service(name: str) -> ServiceOverview:
    """Return the state of a service: what is wanted of it, and what actually runs.

    Args:
        name: The service.

    Returns:
        The service as it is now.

    Raises:
        NotFoundError: If there is no such service.
    """
    (found,) = overview([name])
    return found


@connected
def get_endpoint(name: str) -> Endpoint:
    """Return where a service answers, without asking its machines.

    Args:
        name: The service.

    Returns:
        Its endpoint.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If it does not serve.
    """
    endpoint = load_record(name).endpoint
    if endpoint is None:
        raise ConflictError(f"{name}: does not serve; deploy it first")
    return endpoint


@connected
def list_revisions(name: str) -> list[RevisionOverview]:
    """List the revisions of a service: who, when, what changed, how it ended.

    Args:
        name: The service.

    Returns:
        Those that are kept, the oldest first.

    Raises:
        NotFoundError: If there is no such service.
    """
    return history_of(load_record(name))


@connected
def read_logs(
    name: str,
    *,
    replica: int | None = None,
    revision: int | None = None,
    tail: int | None = None,
    follow: bool = False,
    since: datetime | None = None,
) -> Iterator[str]:
    """Read what the replicas of a service write.

    Args:
        name: The service.
        replica: Only this replica, counted from 0; None: all.
        revision: Only those of this revision; of one that failed, what was kept of it. None: all that run.
        tail: Only so many lines from the end of each; None: all that is kept.
        follow: Go on with what they write from now, until the service is stopped.
        since: Only what was written since then.

    Yields:
        Lines; with several replicas, each starts with the name of its own.

    Raises:
        NotFoundError: If there is no such service, or no such replica.
        ConflictError: If it runs on another machine.
    """
    return logs.read_logs(name, replica=replica, revision=revision, tail=tail, follow=follow, since=since)


alist_services = asynchronous(list_services)
aget_service = asynchronous(get_service)
aget_endpoint = asynchronous(get_endpoint)
alist_revisions = asynchronous(list_revisions)
aread_logs = asynchronous_iterator(read_logs)
