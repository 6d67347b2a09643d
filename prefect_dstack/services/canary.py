"""A share of the traffic goes to the new revision first, or growing ones, and all if it does no worse."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Paused
from prefect.utilities.urls import url_for

from prefect_dstack.configurations import Canary
from prefect_dstack.controller.comparison import Comparison
from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.canary import Step, steps_of, weights_for
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.errors import DeploymentError
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.evaluation import Evaluate, evaluate_running
from prefect_dstack.services.publication import EventName, publish_event
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.tasks.canary import share_traffic, watch_canary

__all__ = ["try_canary"]

DECISION_POLL = 2.0


def try_canary(
    goal: Goal,
    old: Goal,
    terms: Canary,
    evaluate: Evaluate | None,
    gateway: ManagedGateway,
    record: ServiceRecord,
    run: ServiceRun,
) -> ServiceRecord:
    """Send a share of the traffic to a new revision, or one after the other, and compare it with what serves.

    The replicas that it takes are the first of those that the new revision is to have. Whatever happens,
    undoing is the same as for any other rollout: the old revision is taken back to full strength, and the
    weights are made even.

    Args:
        goal: The new revision.
        old: The revision that serves, at full strength.
        terms: The shares, for how long, and how much worse it may be.
        evaluate: Judges the new revision at the end of each step, if the terms have any.
        gateway: The gateway in front of the service.
        record: The record of the service.
        run: The flow run that does it.

    Returns:
        The record, with what the last evaluation found.

    Raises:
        DeploymentError: If the canary does not make it.
    """
    assert goal.revision is not None  # noqa: S101 - a rollout is to a revision
    event: EventName = "canary-started"
    for step in steps_of(terms, old.replicas, goal.replicas, goal.limits.max_surge):
        found = _take(step, goal, old, gateway, record, run)
        publish_event(event, goal.service, goal.revision, {"weight": step.weight})
        event = "canary-advanced"
        with _rejecting(goal):
            _compare(step, goal, old, terms, gateway)
            if evaluate is not None and terms.steps:
                record = evaluate_running(evaluate, goal, found, record, run, weight=step.weight)
    if terms.promote == "manual":
        with _rejecting(goal):
            _wait_for_a_person(goal, old, terms, gateway, run)
    share_traffic(gateway, goal.service, {})
    run.log.info("%s@%d: promoted", goal.service, goal.revision)
    publish_event("canary-promoted", goal.service, goal.revision)
    return record


def _take(
    step: Step, goal: Goal, old: Goal, gateway: ManagedGateway, record: ServiceRecord, run: ServiceRun
) -> list[FoundReplica]:
    """Return all replicas of the service, once the canary has those and the weight of a step."""
    assert goal.revision is not None  # noqa: S101 - as above
    assert old.revision is not None  # noqa: S101 - a canary is only tried beside what serves
    numbers = goal.first(step.replicas)
    # Those behind a router get their requests from there.
    count = sum(goal.template(number).direct for number in numbers)
    serving = sum(old.template(number).direct for number in old.numbers)
    old_weight, new_weight = weights_for(step.weight, serving, count)
    noun = "replica gets" if count == 1 else "replicas get"
    run.log.info(
        "%s@%d: %d %s %g %% of the requests for %d s",
        *(goal.service, goal.revision, count, noun, step.weight, step.duration),
    )
    share_traffic(gateway, goal.service, {old.revision: old_weight, goal.revision: new_weight})
    beside = Limits(max_surge=0, max_unavailable=0)
    canary = dataclasses.replace(
        goal, numbers=numbers, limits=beside, weight=new_weight, untouched=old.revision
    )
    return run.converge(canary, gateway, record).found


@contextlib.contextmanager
def _rejecting(goal: Goal) -> Iterator[None]:
    try:
        yield
    except DeploymentError as error:
        publish_event("canary-rejected", goal.service, goal.revision, {"reason": str(error)})
        raise


def _compare(step: Step, goal: Goal, old: Goal, terms: Canary, gateway: ManagedGateway) -> None:
    assert goal.revision is not None  # noqa: S101 - as above
    assert old.revision is not None  # noqa: S101 - as above
    verdict = watch_canary(gateway, goal.service, old.revision, goal.revision, terms, step)
    if verdict.decision == "reject" or (verdict.decision == "unsure" and terms.promote == "auto"):
        raise DeploymentError(verdict.reason)


def _page_of(flow_run: UUID) -> str:
    return url_for("flow-run", obj_id=flow_run) or "the Prefect UI"


def _wait_for_a_person(
    goal: Goal, old: Goal, terms: Canary, gateway: ManagedGateway, run: ServiceRun
) -> None:
    """Pause the flow run until a person resumes or cancels it; a canary that fails meanwhile is rejected.

    The process stays and holds the service's lock. Prefect's `suspend_flow_run` would end it, and needs a
    worker to begin anew; its `pause_flow_run` would not see that the run was cancelled.
    """
    assert goal.revision is not None  # noqa: S101 - as above
    assert old.revision is not None  # noqa: S101 - as above
    flow_run = UUID(run.flow_run)
    comparison = Comparison(gateway, goal.service, old.revision, goal.revision)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, Paused(message=f"{goal.service}@{goal.revision}: promote it?"))
        run.log.info(
            "%s@%d: waits for somebody to resume its flow run, or to cancel it: prefect-dstack promote %s, "
            "or prefect flow-run cancel %s, or %s",
            *(goal.service, goal.revision, goal.service, flow_run, _page_of(flow_run)),
        )
        while True:
            verdict = comparison.judge(terms, over=False)
            if verdict.decision == "reject":
                client.resume_flow_run(flow_run)
                raise DeploymentError(verdict.reason)
            try:
                state = client.read_flow_run(flow_run).state
            except ObjectNotFound:
                raise DeploymentError("the flow run was deleted instead of resumed") from None
            except httpx.TransportError as error:
                run.log.warning("the Prefect API does not answer, asking again: %s", error)
            else:
                if state is not None and state.is_running():
                    return
                if state is not None and not state.is_paused():
                    # Without a worker nobody else says that the cancellation has come to its end.
                    client.set_flow_run_state(flow_run, Cancelled(message="The canary was not promoted."))
                    raise DeploymentError("the canary was cancelled instead of promoted")
            time.sleep(DECISION_POLL)
