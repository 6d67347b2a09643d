"""Replacing one replica that has stopped answering, while the others serve on."""

from __future__ import annotations

from prefect_dstack.controller.goal import DEFAULT_GRACE
from prefect_dstack.domain.record import ServiceRecord, now
from prefect_dstack.domain.replacement import noted
from prefect_dstack.errors import NotFoundError
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.probes import ask
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.preparation import recorded
from prefect_dstack.services.publication import publish_event
from prefect_dstack.services.restoration import bring_back
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.store.records import save_record
from prefect_dstack.store.runs import deploying
from prefect_dstack.tasks.gateways import unregister_replica
from prefect_dstack.tasks.replicas import remove_replica, terminate_instance

__all__ = ["replace"]


def replace(record: ServiceRecord, replica: str, reason: str, run: ServiceRun) -> bool:
    """Replace a replica that fails its probe, unless it answers again by now.

    Args:
        record: The record of the service; its lock is held.
        replica: The name of the replica.
        reason: Why, in one line.
        run: The flow run that does it.

    Returns:
        Whether it was replaced.

    Raises:
        NotFoundError: If it is none of the replicas that are wanted.
        PrefectDstackError: If the new one does not come to serve; the next repair goes on with it.
    """
    refuse_elsewhere(record, run.infrastructure.here, "restart")
    active = record.active_revision
    if active is None or replica not in record.wanted_names:
        raise NotFoundError(f"{record.name}: has no replica {replica} that is to serve")
    gateway = run.infrastructure.gateway(record.gateway)
    found = run.infrastructure.observe(record.name, record.runtimes).of(replica)
    if replica not in gateway.unusable(record.name) or (found is not None and _answers(record, found, run)):
        run.log.info("%s: answers again, left alone", replica)
        return False
    run.log.warning("%s: is replaced: %s", replica, reason)
    publish_event("degraded", record.name, record.active, {"problems": [f"{replica}: {reason}"]})
    record = noted(record.abandoned(), replica, reason, now())
    save_record(record.model_copy(update={"deploying": deploying(active.number, run.flow_run, run.lease)}))
    try:
        if found is not None:
            unregister_replica(run.infrastructure, gateway, found.replica.stamp, found.instance)
            remove_replica(run.infrastructure, found, DEFAULT_GRACE)
            if run.infrastructure.is_owned(found.instance):
                terminate_instance(run.infrastructure, found.instance)
        bring_back(record, run)
    finally:
        save_record(record)
    publish_event("restored", record.name, record.active, {"reason": f"{replica} was replaced"})
    return True


def _answers(record: ServiceRecord, found: FoundReplica, run: ServiceRun) -> bool:
    """Ask the replica on its own machine: what is wrong on the way to it, a new one would not change."""
    if record.active_revision is None or found.status.state != "running":
        return False
    prepared = recorded(record, record.active_revision, run.infrastructure.sources)
    probe = prepared.routed.repeated_probe
    if probe is None:
        return False
    answer = ask(run.infrastructure.machine(found.instance), found.replica, probe)
    run.log.info("%s: %s", found.replica.name, answer.detail)
    return answer.passed
