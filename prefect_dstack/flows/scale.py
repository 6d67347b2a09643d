"""Changing how many replicas a service has."""

from __future__ import annotations

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.domain.record import (
    AUTOSCALER,
    DesiredReplicas,
    Endpoint,
    ServiceRecord,
    check_replicas,
    now,
)
from prefect_dstack.errors import ConflictError
from prefect_dstack.flows.hooks import restore_hook
from prefect_dstack.flows.served import served_flow
from prefect_dstack.services.deployment import scale
from prefect_dstack.services.location import refuse_elsewhere
from prefect_dstack.services.preparation import desired_replicas, recorded, scaled_groups, this_user
from prefect_dstack.services.run import holding, requested_at
from prefect_dstack.store.records import load_record

__all__ = ["ascale_service", "scale_service"]

DECISION_AGE = 30.0
"""Seconds after which an autoscaler has to look at the load again; it looks every second."""


@served_flow(
    name="scale-service",
    flow_run_name="scale {name}",
    on_failure=[restore_hook],
    on_cancellation=[restore_hook],
    on_crashed=[restore_hook],
)
def scale_service(
    name: str,
    replicas: int | None,
    reason: str = "",
    set_by: str | None = None,
    pin: bool = True,
    group: str | None = None,
) -> Endpoint:
    """Scale a service to another number of replicas; this creates no revision.

    Args:
        name: The service.
        replicas: How many it is to have, pinned until it is released; None: release it, so that its
            configuration counts again.
        reason: Why, for the history.
        set_by: Who wants it; default: this user.
        pin: Whether the number stays whatever the configuration says; an autoscaler does not pin.
        group: The group of replicas that gets the number; needed for a service with groups.

    Returns:
        Where the service answers.

    Raises:
        NotFoundError: If there is no such service.
        ConflictError: If it does not serve, or runs on another machine.
        UserError: If the number makes no sense, or the service has no such group.
    """
    if replicas is not None:
        check_replicas(replicas)
    load_record(name)
    with holding(name) as run:
        record = load_record(name)
        refuse_elsewhere(record, run.infrastructure.here, "scale")
        if record.active_revision is None:
            raise ConflictError(f"{name}: does not serve, so it cannot be scaled; apply its file first")
        if set_by == AUTOSCALER and record.endpoint is not None and _is_outdated(record):
            run.log.info("%s: not scaled, as it has changed or waited since that was decided", name)
            return record.endpoint.model_copy(update={"changed": False})
        prepared = recorded(record, record.active_revision, run.infrastructure.sources)
        who = set_by or this_user()
        if replicas is None:
            desired = desired_replicas(record.released(), prepared.configuration)
            if record.desired is not None and record.desired.pinned:
                desired = desired.model_copy(update={"reason": f"released by {who}"})
        else:
            groups = scaled_groups(record, prepared.groups, replicas, group)
            desired = DesiredReplicas(
                replicas=sum(groups.values()) if groups else replicas,
                groups=groups,
                set_by=who,
                set_at=now(),
                reason=reason,
                pinned=pin,
            )
        return scale(record, prepared, run, desired)


def _is_outdated(record: ServiceRecord) -> bool:
    """Return whether a service has changed, or too much time passed, since this flow run was asked for."""
    asked, present = int(requested_at().timestamp()), now().timestamp()  # as exact as records are
    pinned = record.desired is not None and record.desired.pinned
    return pinned or asked <= record.changed_at.timestamp() <= present or present - asked > DECISION_AGE


ascale_service = asynchronous(scale_service)
