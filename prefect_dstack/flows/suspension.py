"""A flow run of a deployment that is suspended until a person has decided."""

from __future__ import annotations

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from prefect_dstack.domain.record import Endpoint, now
from prefect_dstack.errors import RejectedError
from prefect_dstack.flows.served import is_of_deployment
from prefect_dstack.services.decision import approve, reject
from prefect_dstack.services.pages import approval_page
from prefect_dstack.services.run import flow_run_id, holding
from prefect_dstack.store.records import load_record

__all__ = ["ApprovalForm", "suspended_until_decided"]

SOMEBODY = "somebody in the Prefect UI"


class ApprovalForm(RunInput):
    """What a person enters when the flow run is resumed."""

    approve: bool = Field(default=True, description="Whether the new revision takes over.")
    by: str = Field(default="", description="Your name, for the history.")
    reason: str = Field(default="", description="Why, for the history.")


def suspended_until_decided(endpoint: Endpoint) -> Endpoint:
    """Suspend the flow run of a deployment whose revision waits for approval; no process waits.

    The flow run begins anew when somebody resumes it, and comes here again. A flow run that no deployment has
    started cannot be resumed, and ends.

    Args:
        endpoint: What the flow would return.

    Returns:
        Where the service answers after the decision; the same where the flow run is not suspended.

    Raises:
        RejectedError: If the revision was rejected.
    """
    waiting = endpoint.waiting
    if waiting is None or not is_of_deployment() or waiting.flow_run != flow_run_id():
        return endpoint
    name = endpoint.service
    left = None if waiting.expires_at is None else max(1, int((waiting.expires_at - now()).total_seconds()))
    form = _decision(f"approval-{waiting.revision}", left, approval_page(load_record(name), waiting))
    by = form.by or SOMEBODY
    with holding(name) as run:
        record = load_record(name)
        if form.approve:
            return approve(record, run, by=by, reason=form.reason)
        raise RejectedError(reject(record, run, by=by, reason=form.reason))


def _decision(key: str, timeout: int | None, description: str) -> ApprovalForm:
    form = ApprovalForm.with_initial_data(description=description)
    try:
        decision = suspend_flow_run(wait_for_input=form, timeout=timeout, key=key)
    except TypeError:
        # Resumed without the form, which `prefect flow-run resume` does not ask for.
        return ApprovalForm()
    return ApprovalForm.model_validate(decision.model_dump())
