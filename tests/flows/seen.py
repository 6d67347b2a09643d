"""What the Prefect API shows of services and of the flow runs that deployed them."""

from __future__ import annotations

from typing import Any

from prefect_dstack.domain.record import ServiceRecord
from tests.prefect_server import PrefectServer


def runs_of(server: PrefectServer, action: str, name: str) -> list[dict[str, Any]]:
    """The flow runs that deployed, or stopped, a service, the first one first."""
    found: list[dict[str, Any]] = server.ask(
        "/flow_runs/filter", flow_runs={"name": {"any_": [f"{action} {name}"]}}, sort="START_TIME_ASC"
    )
    return found


def tasks_of(server: PrefectServer, run: dict[str, Any]) -> list[str]:
    """The names of a flow run's task runs, in the order of their start."""
    found = server.ask(
        "/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}}, sort="EXPECTED_START_TIME_ASC"
    )
    return [task["name"] for task in sorted(found, key=lambda task: task["start_time"] or "")]


def record_of(server: PrefectServer, name: str) -> ServiceRecord:
    """What is remembered of a service."""
    documents = server.ask(
        "/block_documents/filter",
        block_types={"slug": {"any_": ["dstack-service"]}},
        block_documents={"name": {"like_": name}},
    )
    (data,) = (document["data"] for document in documents if document["name"] == name)
    return ServiceRecord.model_validate(data["record"])


def events_of(server: PrefectServer, kind: str, name: str) -> list[dict[str, Any]]:
    """The events of a kind on a service, the last one first."""
    found: list[dict[str, Any]] = server.ask(
        "/events/filter",
        filter={"event": {"name": [kind]}, "resource": {"id": [f"prefect-dstack.service.{name}"]}},
    )["events"]
    return found
