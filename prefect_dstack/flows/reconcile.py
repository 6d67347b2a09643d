"""Repairing what differs from the records."""

from __future__ import annotations

from prefect import get_run_logger

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.reconciliation import reconcile
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["areconcile_services", "reconcile_services"]


@served_flow(name="reconcile-services")
def reconcile_services(dry_run: bool = False, foreign: bool = False) -> list[str]:
    """Compare the records with what actually runs, and repair the difference.

    Replicas that are gone are replaced and missing routes restored. What neither a record nor a live flow run
    owns is removed, if this Prefect API knows the flow run that created it. A machine or service that cannot
    be repaired now does not hold up the others, nor does one that somebody else works on.

    Args:
        dry_run: Only report what would be done.
        foreign: Remove also what flow runs have created that this Prefect API does not know: those of a
            database that was reset, or of another Prefect API, whose services this would end.

    Returns:
        What was done, or would be, a line each; empty if all was as wanted.

    Raises:
        PrefectDstackError: At the end, if something could not be repaired.
    """
    logger = get_run_logger()
    result = reconcile(resolve_infrastructure(), logger, dry_run=dry_run, foreign=foreign)
    for line in result.done:
        logger.info("%s: %s", "dry run" if dry_run else "done", line)
    if not result.done and not result.problems:
        logger.info("nothing to repair")
    if result.problems:
        raise PrefectDstackError("; ".join(dict.fromkeys(result.problems)))
    return result.done


areconcile_services = asynchronous(reconcile_services)
