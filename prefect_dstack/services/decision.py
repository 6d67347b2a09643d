"""What a person decides about a revision that waits for approval."""

from __future__ import annotations

from prefect_dstack.domain.record import Decision, Endpoint, PendingApproval, ServiceRecord, now
from prefect_dstack.errors import ConflictError, PrefectDstackError
from prefect_dstack.services.deployed_evaluation import deployed_evaluation
from prefect_dstack.services.deployment import put_revision
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.preparation import desired_replicas, recorded
from prefect_dstack.services.publication import publish_event
from prefect_dstack.services.restoration import restore, withdraw
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.store.runs import fail_paused, resume_paused

__all__ = ["approve", "decided", "reject"]


def decided(record: ServiceRecord, flow_run: str) -> Endpoint | None:
    """Return where a service answers with the revision that a flow run deployed, once that was approved.

    A flow run that was suspended begins anew when it goes on.

    Args:
        record: The record of the service.
        flow_run: The id of the flow run.

    Returns:
        Where it answers; None if the flow run has deployed nothing that was approved and serves.
    """
    active = record.active_revision
    if active is None or active.flow_run != flow_run or active.decision is None or record.endpoint is None:
        return None
    return record.endpoint


def approve(record: ServiceRecord, run: ServiceRun, *, by: str, reason: str = "") -> Endpoint:
    """Approve the revision that waits.

    Args:
        record: The record of the service; its lock is held.
        run: The flow run that does it.
        by: Who approves.
        reason: Why, in one line.

    Returns:
        Where the service answers.

    Raises:
        ConflictError: If no revision waits, or its time is over.
        PrefectDstackError: If it does not make it; what served before serves on.
    """
    pending = _pending(record, run, "approve")
    decision = Decision(approved=True, by=by, at=now(), reason=reason)
    revision = record.revision(pending.revision).decided(decision)
    prepared = recorded(record, revision, run.infrastructure.sources)
    desired = desired_replicas(record, prepared.configuration)
    evaluate = deployed_evaluation(prepared.configuration)
    run.log.info("%s@%d: approved by %s", record.name, revision.number, by)
    publish_event("approved", record.name, revision.number, decision.model_dump(mode="json"))
    try:
        endpoint = put_revision(record, revision, prepared, run, desired=desired, evaluate=evaluate)
    except PrefectDstackError as error:
        if pending.flow_run != run.flow_run:
            fail_paused(pending.flow_run, str(error))
        raise
    if pending.flow_run != run.flow_run:
        resume_paused(pending.flow_run)
    return endpoint


def reject(record: ServiceRecord, run: ServiceRun, *, by: str, reason: str = "") -> str:
    """Remove the revision that waits; what serves is left as it is.

    Args:
        record: The record of the service; its lock is held.
        run: The flow run that does it.
        by: Who rejects.
        reason: Why, in one line.

    Returns:
        What happened, in one line.

    Raises:
        ConflictError: If no revision waits, or its time is over.
    """
    pending = _pending(record, run, "reject")
    why = f"rejected by {by}{f': {reason}' if reason else ''}"
    withdraw(record, run, Decision(approved=False, by=by, at=now(), reason=why))
    return f"{record.name}@{pending.revision} was {why}"


def _pending(record: ServiceRecord, run: ServiceRun, verb: str) -> PendingApproval:
    refuse_elsewhere(record, run.infrastructure.here, verb)
    if record.approval is None:
        raise ConflictError(
            f"{record.name}: no revision waits for approval; prefect-dstack ps shows how it is"
        )
    pending = record.pending()
    if pending is None:
        expired = record.approval
        restore(record, run)
        raise ConflictError(
            f"{record.name}@{expired.revision}: could be approved until {expired.until}, and is removed now; "
            "deploy it again"
        )
    return pending
