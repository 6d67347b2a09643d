"""From what runs to what is wanted: the one way by which replicas come and go.

A deployment, its undoing, a stop, a scaling and a repair differ only in what they want in the end. Nothing
here knows Prefect: the actions may be its tasks, or plain calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

from prefect_dstack.backends.base import Offer
from prefect_dstack.controller.actions import Actions
from prefect_dstack.controller.goal import DEFAULT_GRACE, Goal
from prefect_dstack.controller.routers import party_of
from prefect_dstack.controller.world import World
from prefect_dstack.domain.placement import on_one_network, place
from prefect_dstack.domain.rollout import Step, next_steps
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import CapacityError, DeploymentError, NoRoomError, PrefectDstackError
from prefect_dstack.infrastructure.observation import Observation, running_replicas
from prefect_dstack.runtimes.base import Launch

__all__ = ["Log", "converge", "is_reached"]

Log = logging.Logger | logging.LoggerAdapter[Any]

# Rounds a rollout may take for each replica it touches before it is given up as going in circles.
ROUNDS_PER_REPLICA = 8
PARALLEL_STEPS = 64
CAPACITY_PAUSE = 10.0
# A signal or a cancellation is noticed within so many seconds while steps are under way.
POLL = 0.5


def converge(
    goal: Goal,
    world: World,
    actions: Actions,
    log: Log,
    *,
    flow_run: str,
    machine: str = "",
    offers: Sequence[Sequence[Offer]] | None = None,
) -> Observation:
    """Bring a service to its goal in rounds, each from a fresh observation.

    Args:
        goal: What is wanted.
        world: Where its replicas are.
        actions: What is done to them.
        log: Told of failures beside the one that is raised.
        flow_run: Stamped on what is created.
        machine: The identity of this machine, stamped on what is created on it.
        offers: Where the first replicas of each group may run, if that is known already; asked for anew in
            each round.

    Returns:
        What was found last, when nothing was left to do.

    Raises:
        PrefectDstackError: The first failure, once everything else that was under way has ended. A lack of
            capacity counts only after the goal's `capacity_timeout`.
    """
    began = time.monotonic()
    run = _Convergence(goal, world, actions, log, flow_run, machine)
    budget: int | None = None
    while True:
        steps, observation, running = run.plan()
        if not steps:
            run.tell_routers()
            return observation
        if budget is None:
            budget = ROUNDS_PER_REPLICA * (running + goal.replicas + 1)
        budget -= 1
        if budget < 0:
            raise DeploymentError(f"{goal.service}: replicas end as fast as they are started")
        try:
            run.take(steps, observation, offers)
        except (CapacityError, NoRoomError) as error:
            if time.monotonic() - began >= goal.capacity_timeout:
                raise
            log.warning("%s: %s; trying again in %.0f s", goal.service, error, CAPACITY_PAUSE)
            time.sleep(CAPACITY_PAUSE)
            # What was given up with the failed step is taken up again.
            run, budget = _Convergence(goal, world, actions, log, flow_run, machine), None
        offers = None


def is_reached(goal: Goal, world: World) -> bool:
    """Return whether nothing is left to do for a goal.

    Args:
        goal: What is wanted.
        world: Where its replicas are.
    """
    observation, state = world.observe()
    running = [
        replica
        for replica in running_replicas(observation, goal.service, state)
        if replica.revision != goal.untouched
    ]
    return not next_steps(running, goal.wanted, goal.limits)


class _Convergence:
    """One convergence: the goal, and whether what is under way matters any more."""

    def __init__(
        self, goal: Goal, world: World, actions: Actions, log: Log, flow_run: str, machine: str
    ) -> None:
        self.goal, self.world, self.actions, self.log = goal, world, actions, log
        self.flow_run, self.machine = flow_run, machine
        self.abandoned = threading.Event()
        self._telling = threading.Lock()

    def plan(self) -> tuple[list[Step], Observation, int]:
        goal = self.goal
        observation, state = self.world.observe()
        observation, duplicates = observation.without_duplicates(state)
        for duplicate in duplicates:
            self.actions.remove(duplicate, DEFAULT_GRACE)
        running = [
            replica
            for replica in running_replicas(observation, goal.service, state)
            if replica.revision != goal.untouched
        ]
        return next_steps(running, goal.wanted, goal.limits), observation, len(running)

    def take(
        self, steps: Sequence[Step], observation: Observation, offers: Sequence[Sequence[Offer]] | None
    ) -> None:
        """Do the steps of one round at once, and raise what failed when all have ended."""
        todo: list[Callable[[], None]] = []
        launches = [step for step in steps if step.action == "launch"]
        for step, candidates in self._placed(launches, observation, offers):
            todo.append(self._launch(step, candidates))
        for step in steps:
            if step.action == "route":
                todo.append(self._route(step, observation))
            elif step.action == "drain":
                todo.append(self._drain(step))
            elif step.action == "remove":
                todo.append(self._remove(step, observation))
        failures = [failure for failure in self._run(todo) if failure is not None]
        if failures:
            raise self._first(failures)

    def _placed(
        self, launches: Sequence[Step], observation: Observation, offers: Sequence[Sequence[Offer]] | None
    ) -> Iterator[tuple[Step, list[Offer]]]:
        """Yield each launch with the offers to try, group by group."""
        templates = self.goal.templates
        occupied = Counter(observation.occupied(self.goal.revision))
        groups: dict[int, list[Step]] = {}
        for step in launches:
            groups.setdefault(step.replica % len(templates), []).append(step)
        known = {
            index: self.world.offers(templates[index].spec.requirements) if offers is None else offers[index]
            for index in sorted(groups)
        }
        if known and self.goal.interconnected:
            counts = {index: len(steps) for index, steps in groups.items()}
            known = dict(on_one_network(self.goal.service, known, counts, used=observation.networks))
        for index, candidates in known.items():
            for step, tried in zip(
                groups[index], place(candidates, len(groups[index]), occupied), strict=True
            ):
                occupied[tried[0].instance_type] += 1
                yield step, tried

    def _launch(self, step: Step, offers: Sequence[Offer]) -> Callable[[], None]:
        spec = self.goal.template(step.replica).spec

        def launch() -> None:
            stamp = self._stamp(step).model_copy(update={"flow_run": self.flow_run})
            instance = self.actions.provision(offers, stamp, spec.requirements)
            if not self.abandoned.is_set():
                self.actions.launch(instance, Launch(stamp=stamp, spec=spec))

        return launch

    def _route(self, step: Step, observation: Observation) -> Callable[[], None]:
        found, template = observation.of(self._stamp(step).name), self.goal.template(step.replica)

        def route() -> None:
            if found is None:
                return
            self.actions.wait_until_ready(found, template, self.abandoned)
            # A router that gets requests must know where to send them; a worker is told of once it is there.
            if template.direct:
                self.tell_routers(about=found.replica.name)
            self.actions.register(found, template, self.goal.weight)
            if not template.direct:
                self.tell_routers()

        return route

    def _drain(self, step: Step) -> Callable[[], None]:
        def drain() -> None:
            self.actions.drain(self.goal.service, self._stamp(step).name, self.goal.stop_duration)
            self.tell_routers()

        return drain

    def tell_routers(self, about: str = "") -> None:
        """Make the workers of each router those that there are; `about` one that is about to get requests."""
        goal = self.goal
        if not goal.routers:
            return
        with self._telling:
            observation, state = self.world.observe()
            party = party_of(
                *(observation, state, goal.service, goal.groups, goal.routers),
                untouched=goal.untouched,
                about=about,
            )
            for router in party.routers:
                try:
                    self.actions.tell_router(router, party.workers)
                except PrefectDstackError as error:
                    if router.replica.stamp.revision == goal.revision:
                        raise
                    self.log.warning("%s", error)

    def _remove(self, step: Step, observation: Observation) -> Callable[[], None]:
        stamp = self._stamp(step)
        found = observation.of(stamp.name)

        def remove() -> None:
            self.actions.unregister(stamp, None if found is None else found.instance)
            self.tell_routers()
            if found is not None:
                self.actions.remove(found, DEFAULT_GRACE)
                owned = [found.instance]
            else:
                owned = [instance for instance, whose in observation.empty if whose.name == stamp.name]
            for instance in owned:
                if self.world.is_owned(instance):
                    self.actions.terminate(instance)

        return remove

    def _run(self, todo: Sequence[Callable[[], None]]) -> Iterator[BaseException | None]:
        """Do everything at once, and give up what does not matter any more after the first failure."""
        pool = ThreadPoolExecutor(max(1, min(len(todo), PARALLEL_STEPS)), "converge")
        try:
            pending: set[Future[None]] = {pool.submit(copy_context().run, step) for step in todo}
            while pending:
                done, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if error is not None:
                        self.abandoned.set()
                    yield error
        except BaseException:
            self.abandoned.set()  # this process is told to end: nobody waits for what is under way
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _first(self, failures: list[BaseException]) -> BaseException:
        # What the user can change explains more than what followed from it.
        failures.sort(key=lambda error: getattr(error, "exit_code", 0), reverse=True)
        for error in failures[1:]:
            self.log.error("%s", error)
        if isinstance(failures[0], PrefectDstackError):
            return failures[0]
        error = DeploymentError(f"{self.goal.service}: {failures[0] or type(failures[0]).__name__}")
        error.__cause__ = failures[0]
        return error

    def _stamp(self, step: Step) -> Stamp:
        return Stamp(service=self.goal.service, revision=step.revision, replica=step.replica)
