"""What the Prefect UI shows of a service beside task runs: artifacts, and events for automations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from prefect_dstack.certificates.renewal import RequiredCertificate
from prefect_dstack.domain.load_history import LoadPoint
from prefect_dstack.domain.record import Decision, PendingApproval, ServiceRecord
from prefect_dstack.infrastructure.certificates import CertificateStatus
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.costs import hourly_price, over_budget
from prefect_dstack.services.load_plot import load_plot
from prefect_dstack.services.pages import service_page, with_load
from prefect_dstack.store.clients import api_client

__all__ = [
    "EventName",
    "publish_approval_requested",
    "publish_certificate_failed",
    "publish_deployed",
    "publish_event",
    "publish_load",
    "publish_not_serving",
    "publish_rejected",
]

EventName = Literal[
    "deployed",
    "unchanged",
    "failed",
    "rolled-back",
    "scaled",
    "stopped",
    "degraded",
    "restored",
    "deleted",
    "approval-requested",
    "approved",
    "rejected",
    "canary-started",
    "canary-advanced",
    "canary-promoted",
    "canary-rejected",
    "over-budget",
    "interrupted",
]


def publish_event(
    name: EventName, service: str, revision: int | None, payload: Mapping[str, Any] | None = None
) -> None:
    """Emit an event of a service; all have the same resource, so that automations can follow it.

    Args:
        name: The last part of the event's name, after `prefect-dstack.service.`.
        service: The service.
        revision: The revision that it is about; None: none in particular.
        payload: What else there is to know.
    """
    emit_event(
        event=f"prefect-dstack.service.{name}",
        resource={
            "prefect.resource.id": f"prefect-dstack.service.{service}",
            "prefect.resource.name": service,
            **({} if revision is None else {"prefect-dstack.revision": str(revision)}),
        },
        payload=dict(payload or {}),
    )


def publish_deployed(
    record: ServiceRecord,
    found: Sequence[FoundReplica],
    event: EventName = "deployed",
    payload: Mapping[str, Any] | None = None,
) -> None:
    """Show a service that was deployed, and emit an event.

    Args:
        record: The record of the service; it serves.
        found: Its replicas.
        event: The event to emit.
        payload: What else there is to know.
    """
    endpoint = record.endpoint
    if endpoint is None:
        return
    _publish_page(record, f"{record.name}@{endpoint.revision} serves at {endpoint.url}", found)
    price = hourly_price(item.instance for item in found)
    if excess := over_budget(record, price):
        publish_event("over-budget", record.name, endpoint.revision, {"price": price, "reason": excess})
    publish_event(
        event,
        record.name,
        endpoint.revision,
        {**endpoint.model_dump(mode="json"), "gateway": record.gateway, **(payload or {})},
    )


def publish_not_serving(
    record: ServiceRecord, event: EventName, revision: int | None, reason: str = ""
) -> None:
    """Show that a deployment failed, or that a service was stopped, and what serves now.

    Args:
        record: The record of the service.
        event: The event to emit.
        revision: The revision that it is about.
        reason: Why, in one line.
    """
    if record.active is None:
        description = f"{record.name} does not serve: {reason or 'it is stopped'}"
    else:
        description = f"{record.name}@{revision} {event}; {record.name}@{record.active} serves on"
    _publish_page(record, description)
    publish_event(event, record.name, revision, {"reason": reason, "serves": record.active})


def publish_approval_requested(record: ServiceRecord, pending: PendingApproval) -> None:
    """Show a revision that waits for approval, with what a person needs to decide.

    Args:
        record: The record of the service.
        pending: What waits.
    """
    _publish_page(record, f"{record.name}@{pending.revision} waits for approval")
    publish_event(
        "approval-requested",
        record.name,
        pending.revision,
        {**pending.model_dump(mode="json"), "serves": record.active},
    )


def publish_rejected(record: ServiceRecord, revision: int, decision: Decision) -> None:
    """Show that a revision which waited for approval is not to serve, and emit an event.

    Args:
        record: The record of the service.
        revision: The revision.
        decision: Why it is not to serve.
    """
    _publish_page(record, f"{record.name}@{revision} was not approved: {decision.reason}")
    publish_event("rejected", record.name, revision, decision.model_dump(mode="json"))


def _publish_page(
    record: ServiceRecord, description: str, found: Sequence[FoundReplica] | None = None
) -> None:
    create_markdown_artifact(
        key=_key(record),
        markdown=service_page(record, found),
        description=description,
        _sync=True,  # type: ignore[call-arg]
    )


def publish_load(record: ServiceRecord, points: Sequence[LoadPoint]) -> None:
    """Show on the page of a service what it has borne; that makes no new version of the page.

    Args:
        record: The record of the service.
        points: Its load in intervals, the oldest first; at least one.
    """
    with api_client() as client:
        named = {"artifacts": {"key": {"any_": [_key(record)]}}, "limit": 1}
        for page in client.request("POST", "/artifacts/latest/filter", json=named).json():
            data = with_load(str(page["data"]), load_plot(record, points))
            client.request(
                "PATCH", "/artifacts/{id}", path_params={"id": page["latest_id"]}, json={"data": data}
            )


def _key(record: ServiceRecord) -> str:
    return f"{record.name}-service"


def publish_certificate_failed(
    gateway: str, item: RequiredCertificate, status: CertificateStatus | None, reason: str
) -> None:
    """Emit the event of a certificate that could not be renewed.

    Args:
        gateway: The gateway.
        item: The certificate.
        status: The one that serves meanwhile; None: there is none.
        reason: Why it failed, in one line.
    """
    emit_event(
        event="prefect-dstack.certificate.renewal-failed",
        resource={
            "prefect.resource.id": f"prefect-dstack.certificate.{gateway}.{item.name}",
            "prefect.resource.name": item.name,
        },
        payload={
            "gateway": gateway,
            "hosts": list(item.hosts),
            "expires_at": None if status is None else status.expires_at.isoformat(),
            "reason": reason,
        },
    )
