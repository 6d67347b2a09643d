"""Forgetting a task or a development environment."""

from __future__ import annotations

from prefect import get_run_logger

from prefect_dstack.errors import ConflictError
from prefect_dstack.flows.served import served_flow
from prefect_dstack.settings import settings
from prefect_dstack.store.locks import remove_lock
from prefect_dstack.store.run_records import delete_run as delete_record
from prefect_dstack.store.run_records import load_run

__all__ = ["delete_run"]


@served_flow(name="delete-run", flow_run_name="delete {name}")
def delete_run(name: str) -> None:
    """Forget a task or a development environment that is over.

    Args:
        name: The run.

    Raises:
        NotFoundError: If there is no such run.
        ConflictError: If it is not over.
    """
    if not load_run(name).is_over:
        raise ConflictError(f"{name}: is not over; stop it first: prefect-dstack stop {name}")
    delete_record(name)
    (settings().home / "runs" / f"{name}.log").unlink(missing_ok=True)
    remove_lock(f"run-{name}")
    get_run_logger().info("%s: deleted", name)
