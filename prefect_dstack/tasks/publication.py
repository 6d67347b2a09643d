"""What the Prefect UI shows of a deployment beside its task runs: artifacts and an event."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.events import emit_event

from prefect_dstack.domain.record import Endpoint
from prefect_dstack.tasks.observation import Found

__all__ = ["publish_deployed", "publish_removed"]


def publish_deployed(endpoint: Endpoint, gateway: str, found: Sequence[Found]) -> None:
    """Show a deployed service: its link, its replicas, and an event that automations can wait for.

    Args:
        endpoint: Where it answers.
        gateway: The gateway in front of it.
        found: Its replicas.
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
    emit_event(
        event="prefect-dstack.service.deployed",
        resource={
            "prefect.resource.id": f"prefect-dstack.service.{endpoint.service}",
            "prefect.resource.name": endpoint.service,
            "prefect-dstack.revision": str(endpoint.revision),
        },
        payload={**endpoint.model_dump(mode="json"), "gateway": gateway},
    )


def publish_removed(service: str) -> None:
    """Emit the event of a service that was stopped.

    Args:
        service: The service.
    """
    emit_event(
        event="prefect-dstack.service.stopped",
        resource={
            "prefect.resource.id": f"prefect-dstack.service.{service}",
            "prefect.resource.name": service,
        },
    )
