"""Forgetting a service."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.errors import ConflictError
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.deletion import delete
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.run import holding
from prefect_dstack.store.locks import remove_lock
from prefect_dstack.store.records import load_record

__all__ = ["adelete_service", "delete_service"]


@served_flow(name="delete-service", flow_run_name="delete {name}")
def delete_service(name: str) -> None:
    """Forget a service that does not serve: its record, its history, its files and its tokens.

    Args:
        name: The service.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If it serves, is being deployed, or something of it runs on another machine.
    """
    load_record(name)
    with holding(name) as run:
        record = load_record(name)
        refuse_elsewhere(record, run.infrastructure.here, "delete")
        if record.active is not None or record.approval is not None:
            raise ConflictError(
                f"{name}: serves, or waits for approval; stop it first: prefect-dstack stop {name}"
            )
        delete(record, run)
        run.log.info("%s: deleted", name)
    remove_lock(f"service-{name}")


adelete_service = asynchronous(delete_service)
