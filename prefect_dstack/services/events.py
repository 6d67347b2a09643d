"""Events of services, read from the Prefect API."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from prefect.client.orchestration import SyncPrefectClient
from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.record import now
from prefect_dstack.store.clients import api_client
from prefect_dstack.store.records import load_record

__all__ = ["ServiceEvent", "follow_events", "read_events", "refuse_unknown"]

PREFIX = "prefect-dstack."
RESOURCE = "prefect-dstack.service."
PAGE = 50
POLL = 0.5
# An event may come to be known a little after it happened.
OVERLAP = timedelta(seconds=10)


class ServiceEvent(BaseModel):
    """Something that happened to a service, or to one of its certificates."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="Its id in the Prefect API.")
    occurred: datetime = Field(description="When.")
    name: str = Field(description="What, such as `deployed` or `failed`.")
    subject: str = Field(description="The name of what it happened to.")
    revision: int | None = Field(default=None, description="The revision that it is about.")
    payload: dict[str, Any] = Field(default_factory=dict, description="What else is known.")


def read_events(
    names: Sequence[str] = (), *, since: datetime, limit: int | None = None
) -> list[ServiceEvent]:
    """Return what has happened, the oldest first.

    Args:
        names: Only to these services; none: to any.
        since: Not before that.
        limit: Only so many, the latest.
    """
    with api_client() as client:
        return _read(client, names, since, limit)


def refuse_unknown(names: Sequence[str], found: Sequence[ServiceEvent]) -> None:
    """Refuse names that are not known: of a service that was deleted there are events still.

    Args:
        names: The services that somebody asks for.
        found: What has happened to them.

    Raises:
        NotFoundError: If there is no service of such a name, and nothing has happened to one.
    """
    known = {event.subject for event in found}
    for name in names:
        if name not in known:
            load_record(name)


def follow_events(names: Sequence[str] = (), *, since: datetime) -> Iterator[ServiceEvent]:
    """Yield what has happened, and what happens from now on, without an end.

    Args:
        names: Only to these services; none: to any.
        since: Not before that.
    """
    known: set[str] = set()
    with api_client() as client:
        while True:
            for event in _read(client, names, since, None):
                if event.id not in known:
                    known.add(event.id)
                    yield event
            since = max(since, now() - OVERLAP)
            time.sleep(POLL)


def _read(
    client: SyncPrefectClient, names: Sequence[str], since: datetime, limit: int | None
) -> list[ServiceEvent]:
    wanted: dict[str, Any] = {
        "occurred": {"since": since.isoformat()},
        "event": {"prefix": [PREFIX]},
        "order": "DESC",
    }
    if names:
        wanted["resource"] = {"id": [f"{RESOURCE}{name}" for name in names]}
    most = PAGE if limit is None else min(PAGE, limit)
    page = client.request("POST", "/events/filter", json={"filter": wanted, "limit": most}).json()
    found = list(page["events"])
    while page.get("next_page") and (limit is None or len(found) < limit):
        # The address is that of the server as itself knows it; only what it asks for is ours.
        _, _, query = str(page["next_page"]).partition("?")
        page = client.request("GET", "/events/filter/next", params=dict(parse_qsl(query))).json()
        found += page["events"]
    return [_event(data) for data in reversed(found[:limit])]


def _event(data: dict[str, Any]) -> ServiceEvent:
    resource = data["resource"]
    revision = resource.get("prefect-dstack.revision")
    identifier = str(resource.get("prefect.resource.id", ""))
    return ServiceEvent(
        id=data["id"],
        occurred=data["occurred"],
        name=str(data["event"]).removeprefix(RESOURCE).removeprefix(PREFIX),
        subject=resource.get("prefect.resource.name") or identifier.removeprefix(RESOURCE),
        revision=None if revision is None else int(revision),
        payload=data.get("payload") or {},
    )
