"""From what runs to what shall run: the one way by which replicas come and go.

A deployment, its undoing, a stop and a repair differ only in what they want in the end.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed

from prefect_dstack.backends.base import Offer
from prefect_dstack.domain.placement import place
from prefect_dstack.domain.rollout import Limits, Step, Wanted, next_steps
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import DeploymentError, PrefectDstackError
from prefect_dstack.flows.preparation import Workload, find_offers
from prefect_dstack.gateways.state import Route
from prefect_dstack.runtimes.base import Launch
from prefect_dstack.tasks import connections, gateway_places, observation
from prefect_dstack.tasks.gateways import EVEN_WEIGHT, drain_replica, register_route, unregister_replica
from prefect_dstack.tasks.observation import Sight
from prefect_dstack.tasks.replicas import (
    launch_replica,
    provision_instance,
    remove_replica,
    terminate_instance,
    wait_until_ready,
)

__all__ = ["Goal", "converge"]

# Rounds a rollout may take for each replica it touches before it is given up as going in circles.
ROUNDS_PER_REPLICA = 8
DEFAULT_STOP_DURATION = 300.0
DEFAULT_GRACE = 10.0


@dataclass
class Goal:
    """What a service shall be in the end.

    Attributes:
        service: The service.
        gateway: The gateway in front of it.
        revision: The revision whose replicas shall run; None: none.
        replicas: How many.
        limits: How far the number may go astray meanwhile.
        work: What its replicas are made of; None where none shall run.
        route: The route to register them in; None where none shall run.
        flow_run: Stamped on what is created.
        runtimes: What its revisions, old and new, use.
        stop_duration: Seconds that open requests get to finish; None: as long as they take.
        offers: Where the first replicas may run, if that is known already; asked for anew in each round.
        weight: The share of the requests that each new replica gets, relative to others.
        untouched: A revision whose replicas stay as they are.
    """

    service: str
    gateway: str
    revision: int | None
    replicas: int
    limits: Limits
    flow_run: str
    runtimes: frozenset[str]
    work: Workload | None = None
    route: Route | None = None
    stop_duration: float | None = DEFAULT_STOP_DURATION
    offers: Sequence[Offer] | None = None
    weight: int = EVEN_WEIGHT
    untouched: int | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)


def converge(goal: Goal) -> Sight:
    """Take a service to its goal, round by round, each from a fresh look at what is there.

    Args:
        goal: What is wanted.

    Returns:
        What was seen last, when nothing was left to do.

    Raises:
        PrefectDstackError: The first failure, once everything else that was under way has ended.
    """
    wanted = Wanted(revision=goal.revision, replicas=goal.replicas)
    budget: int | None = None
    while True:
        instances = observation.instances_of(goal.service, goal.runtimes)
        seen = observation.look(goal.service, instances, goal.runtimes)
        state = gateway_places.state(goal.gateway)
        sight, twins = seen.without_twins(state)
        for twin in twins:
            remove_replica(twin.instance, twin.replica, DEFAULT_GRACE)
        replicas = [
            replica
            for replica in observation.running(sight, goal.service, state)
            if replica.revision != goal.untouched
        ]
        steps = next_steps(replicas, wanted, goal.limits)
        if not steps:
            return sight
        if budget is None:
            budget = ROUNDS_PER_REPLICA * (len(replicas) + goal.replicas + 1)
        budget -= 1
        if budget < 0:
            raise DeploymentError(f"{goal.service}: replicas end as fast as they are started")
        _take(goal, steps, sight)


def _take(goal: Goal, steps: Sequence[Step], sight: Sight) -> None:
    futures: list[PrefectFuture[Any]] = []
    launches = [step for step in steps if step.action == "launch"]
    candidates = _candidates(goal, len(launches), sight) if launches else []
    for step, offers in zip(launches, candidates, strict=True):
        futures += _launch(goal, step, offers)
    for step in steps:
        if step.action == "route":
            futures += _route(goal, step, sight)
        elif step.action == "drain":
            futures.append(
                drain_replica.submit(goal.gateway, goal.service, _name(goal, step), goal.stop_duration)
            )
        elif step.action == "remove":
            futures += _remove(goal, step, sight)
    _gather(goal, futures)


def _candidates(goal: Goal, count: int, sight: Sight) -> list[list[Offer]]:
    if goal.work is None:
        raise DeploymentError(f"{goal.service}: nothing is known of its replicas")
    offers = goal.offers if goal.offers is not None else find_offers(goal.work.configuration)
    goal.offers = None
    staying = Counter(
        found.instance.name for found in sight.found if found.replica.stamp.revision == goal.revision
    )
    return place(offers, count, staying)


def _launch(goal: Goal, step: Step, offers: Sequence[Offer]) -> list[PrefectFuture[Any]]:
    assert goal.work is not None  # noqa: S101 - _candidates has seen to it
    stamp = Stamp(service=goal.service, revision=step.revision, replica=step.replica, flow_run=goal.flow_run)
    launch = Launch(
        stamp=stamp,
        configuration=goal.work.configuration,
        environment=goal.work.environment,
        registry=goal.work.registry,
        directory=goal.work.directory,
    )
    instance = provision_instance.submit(offers, stamp, goal.work.configuration)
    return [instance, launch_replica.submit(instance, launch, return_state=False)]


def _route(goal: Goal, step: Step, sight: Sight) -> list[PrefectFuture[Any]]:
    found = sight.of(_name(goal, step))
    if found is None or goal.work is None or goal.route is None:
        return []
    configuration = goal.work.configuration
    ready = wait_until_ready.submit(
        found.instance,
        found.replica,
        configuration,
        goal.work.environment,
        configuration.rollout.timeout,
        goal.abandoned,
    )
    registered = register_route.submit(
        goal.gateway,
        goal.route,
        found.instance,
        found.replica,
        goal.weight,
        wait_for=[ready],
        return_state=False,
    )
    return [ready, registered]


def _remove(goal: Goal, step: Step, sight: Sight) -> list[PrefectFuture[Any]]:
    stamp = Stamp(service=goal.service, revision=step.revision, replica=step.replica)
    name = stamp.name
    found = sight.of(name)
    futures: list[PrefectFuture[Any]] = [
        unregister_replica.submit(goal.gateway, stamp, None if found is None else found.instance)
    ]
    if found is not None:
        futures.append(
            remove_replica.submit(
                found.instance, found.replica, DEFAULT_GRACE, wait_for=futures[-1:], return_state=False
            )
        )
    owned = (
        [found.instance]
        if found is not None
        else [instance for instance, stamp in sight.empty if stamp.name == name]
    )
    for instance in owned:
        if connections.backends()[instance.backend].stamp(instance) is not None:
            futures.append(terminate_instance.submit(instance, wait_for=futures[-1:], return_state=False))
    return futures


def _gather(goal: Goal, futures: Sequence[PrefectFuture[Any]]) -> None:
    """Wait for everything that is under way, and only then raise what failed."""
    failures: list[BaseException] = []
    try:
        for future in as_completed(list(futures)):
            future.wait()
            state: State[Any] = future.state
            if state.is_completed():
                continue
            goal.abandoned.set()
            if state.is_final():  # else it never ran, for want of what another task should have given it
                error = state.result(raise_on_failure=False)
                failures.append(error if isinstance(error, BaseException) else DeploymentError(str(error)))
    except BaseException:
        goal.abandoned.set()  # this process is told to end: nobody waits for what is under way
        raise
    if not goal.abandoned.is_set():
        return
    for error in failures:
        get_run_logger().error("%s", error)
    # What the user can mend tells more than what followed from it.
    failures.sort(key=lambda error: getattr(error, "exit_code", 0), reverse=True)
    if failures and isinstance(failures[0], PrefectDstackError):
        raise failures[0]
    raise DeploymentError(
        f"{goal.service}: {failures[0]}" if failures else f"{goal.service}: a task did not run to its end"
    ) from (failures[0] if failures else None)


def _name(goal: Goal, step: Step) -> str:
    return Stamp(service=goal.service, revision=step.revision, replica=step.replica).name
