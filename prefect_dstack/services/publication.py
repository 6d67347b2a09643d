"""What the Prefect UI shows of a service beside task runs: artifacts, and events for automations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from prefect_dstack.certificates.renewal import RequiredCertificate
from prefect_dstack.domain.record import Endpoint, PendingApproval, ServiceRecord
from prefect_dstack.infrastructure.certificates import CertificateStatus
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.pages import approval_page

__all__ = [
    "EventName",
    "publish_approval_requested",
    "publish_certificate_failed",
    "publish_deployed",
    "publish_event",
    "publish_not_serving",
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
    "canary-promoted",
    "canary-rejected",
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
    endpoint: Endpoint, gateway: str, found: Sequence[FoundReplica], event: EventName = "deployed"
) -> None:
    """Show a deployed service: its link, its replicas, and an event.

    Args:
        endpoint: Where it answers.
        gateway: The gateway in front of it.
        found: Its replicas.
        event: The event to emit.
    """
    create_link_artifact(
        key=f"{endpoint.service}-endpoint",
        link=endpoint.url,
        link_text=endpoint.url,
        description=f"The endpoint of {endpoint.service}@{endpoint.revision}",
        _sync=True,  # type: ignore[call-arg]
    )
    create_table_artifact(
        key=f"{endpoint.service}-replicas",
        table=[
            {
                "replica": item.replica.name,
                "runtime": item.replica.runtime,
                "instance": item.instance.name,
                "backend": item.instance.backend,
                "price per hour": item.instance.price,
            }
            for item in found
        ],
        description=f"The replicas of {endpoint.service}@{endpoint.revision}",
        _sync=True,  # type: ignore[call-arg]
    )
    publish_event(
        event,
        endpoint.service,
        endpoint.revision,
        {**endpoint.model_dump(mode="json"), "gateway": gateway},
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
    endpoint = record.endpoint
    if record.active is None or endpoint is None:
        create_markdown_artifact(
            key=f"{record.name}-endpoint",
            markdown=f"**{record.name}** does not serve: {reason or 'it is stopped'}.",
            description=f"{record.name} does not serve",
            _sync=True,  # type: ignore[call-arg]
        )
    elif event == "failed":
        create_link_artifact(
            key=f"{record.name}-endpoint",
            link=endpoint.url,
            link_text=endpoint.url,
            description=f"{record.name}@{revision} failed; {record.name}@{record.active} serves on",
            _sync=True,  # type: ignore[call-arg]
        )
    publish_event(event, record.name, revision, {"reason": reason, "serves": record.active})


def publish_approval_requested(record: ServiceRecord, pending: PendingApproval) -> None:
    """Show a revision that waits for approval, with what a person needs to decide.

    Args:
        record: The record of the service.
        pending: What waits.
    """
    create_markdown_artifact(
        key=f"{record.name}-approval",
        markdown=approval_page(record, pending),
        description=f"{record.name}@{pending.revision} waits for approval",
        _sync=True,  # type: ignore[call-arg]
    )
    publish_event(
        "approval-requested",
        record.name,
        pending.revision,
        {**pending.model_dump(mode="json"), "serves": record.active},
    )


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
