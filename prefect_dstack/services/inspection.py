"""Everything that is known of one service, without anything secret."""

from __future__ import annotations

from typing import Any

from prefect_dstack.domain.revision import changes_of
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.services.overview import overview
from prefect_dstack.store.records import load_record
from prefect_dstack.store.sources import resolve_infrastructure, seen_at_once

__all__ = ["inspect_service"]

# Keys of a record from which nobody learns anything, but who tries values against digests.
DIGESTS = {"workload", "settings", "values"}


def inspect_service(name: str) -> dict[str, Any]:
    """Return everything that is known of a service: what is wanted, what runs, what its gateway routes.

    Args:
        name: The service.

    Returns:
        Plain data, as JSON has it; secrets are in it as references only, tokens by their ids.

    Raises:
        NotFoundError: If there is no such service.
    """
    record = load_record(name)
    with seen_at_once():
        (seen,) = overview([name])
        route = _route(record.gateway, name)
    revisions = [
        revision.model_dump(mode="json", exclude=DIGESTS) | {"changes": changes_of(record, revision)}
        for revision in record.revisions
    ]
    return {
        **seen.model_dump(mode="json", exclude={"revisions", "approval"}),
        "approval": None if record.approval is None else record.approval.model_dump(mode="json"),
        "route": route,
        "desired": None if record.desired is None else record.desired.model_dump(mode="json"),
        "scalings": [scaling.model_dump(mode="json") for scaling in record.scalings],
        "deploying": None if record.deploying is None else record.deploying.model_dump(mode="json"),
        "endpoint": None if record.endpoint is None else record.endpoint.model_dump(mode="json"),
        "revisions": revisions,
    }


def _route(gateway: str, name: str) -> dict[str, Any] | None:
    try:
        state = resolve_infrastructure().gateway(gateway).state()
    except PrefectDstackError:  # the overview says why
        return None
    route = None if state is None else state.routes.get(name)
    if route is None:
        return None
    # Checks have the headers of probes, in which there may be secrets.
    return route.model_dump(mode="json", exclude={"tokens", "health_check"}) | {
        "tokens": sorted(route.tokens)
    }
