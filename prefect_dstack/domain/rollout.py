"""How a service gets from the replicas that run to those that are wanted, without losing a request.

`next_steps` looks only at what is there, never at what was done before: it is called again after each
round, and so goes on from wherever an earlier attempt was interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.configurations import Rollout, amount_of
from prefect_dstack.domain.groups import group_name

__all__ = ["Limits", "Running", "Step", "Wanted", "after", "all_steps", "next_steps"]


class Running(BaseModel):
    """One replica as it was found."""

    model_config = ConfigDict(frozen=True)

    revision: int = Field(description="Its revision.")
    replica: int = Field(description="Its number within the revision.")
    phase: Literal["launched", "serving", "draining", "dead"] = Field(
        description="`launched`: not in the route; `serving`: gets requests; `draining`: gets no new ones; "
        "`dead`: it ended, or its machine is gone."
    )


class Wanted(BaseModel):
    """What shall run in the end."""

    model_config = ConfigDict(frozen=True)

    revision: int | None = Field(description="The revision that shall serve; None: none at all.")
    numbers: tuple[int, ...] = Field(default=(), description="The numbers of its replicas, in order.")
    groups: Mapping[int, tuple[str, ...]] = Field(
        default_factory=dict, description="The names of the groups of each revision that has any."
    )

    @property
    def replicas(self) -> int:
        """How many replicas shall serve."""
        return len(self.numbers)

    def group(self, revision: int, number: int) -> str:
        """Return the name of the group that a replica is of.

        Args:
            revision: Its revision.
            number: Its number.
        """
        return group_name(self.groups.get(revision, ("",)), number)


class Limits(BaseModel):
    """How far a rollout may go below and above the wanted number on its way."""

    model_config = ConfigDict(frozen=True)

    max_surge: int = Field(default=1, ge=0, description="So many replicas more than wanted may exist.")
    max_unavailable: int = Field(default=0, ge=0, description="So many replicas fewer than wanted may serve.")

    @classmethod
    def of(cls, rollout: Rollout, replicas: int) -> Limits:
        """Turn a configured rollout into numbers that let it move.

        Args:
            rollout: As configured; percentages of a surge are rounded up, of unavailability down.
            replicas: How many are wanted.

        Returns:
            The limits; if both came out as 0, a surge of 1.
        """
        if rollout.strategy == "recreate":
            return cls(max_surge=0, max_unavailable=replicas)
        if rollout.strategy == "blue-green":
            return cls(max_surge=max(replicas, 1), max_unavailable=0)
        above = amount_of(rollout.max_surge, replicas, round_up=True)
        below = amount_of(rollout.max_unavailable, replicas, round_up=False)
        return cls(max_surge=above if above or below else 1, max_unavailable=below)


class Step(BaseModel):
    """One action on one replica. Steps of one round do not depend on each other."""

    model_config = ConfigDict(frozen=True)

    action: Literal["launch", "route", "drain", "remove"] = Field(
        description="`launch`: start it; `route`: wait until it is ready and give it requests; "
        "`drain`: give it no new ones and wait for those that are open; `remove`: take it away."
    )
    revision: int
    replica: int


def next_steps(running: Sequence[Running], wanted: Wanted, limits: Limits) -> list[Step]:
    """Decide what to do next.

    Args:
        running: Every replica of the service that exists, of whichever revision.
        wanted: What shall run in the end.
        limits: How many more or fewer there may be meanwhile.

    Returns:
        The steps of one round, to be done in parallel; empty when all is as wanted. Done without failures
        and called again, they end there. The number that serves falls below `wanted.replicas` less
        `max_unavailable` only if it was below before, and so does that of each group below what is wanted of
        it less `max_unavailable`; the number that exists rises above `wanted.replicas` plus `max_surge`
        never.
    """
    good = {
        replica.replica for replica in running if _is_wanted(replica, wanted) and replica.phase == "serving"
    }
    waiting = [r for r in running if _is_wanted(r, wanted) and r.phase in ("launched", "draining")]
    if waiting:
        return [_step("route", replica) for replica in waiting]

    finished = [r for r in running if r.phase == "dead"]
    finished += [r for r in running if r.phase in ("launched", "draining") and not _is_wanted(r, wanted)]
    steps = [_step("remove", replica) for replica in finished]

    steps += [_step("drain", replica) for replica in _to_spare(running, wanted, limits)]

    missing = [number for number in wanted.numbers if number not in good]
    existing = {(r.revision, r.replica) for r in running}
    room = max(wanted.replicas + limits.max_surge - len(running), 0)
    if wanted.revision is not None:
        free = [number for number in missing if (wanted.revision, number) not in existing]
        steps += [Step(action="launch", revision=wanted.revision, replica=number) for number in free[:room]]
    return steps


def after(running: Sequence[Running], step: Step) -> list[Running]:
    """Return what a step makes of the replicas, if it succeeds.

    Args:
        running: Every replica that exists before it.
        step: The step.

    Returns:
        Every replica that exists after it.
    """
    others = [r for r in running if (r.revision, r.replica) != (step.revision, step.replica)]
    if step.action == "remove":
        return others
    phase: Literal["launched", "serving", "draining"] = (
        "launched" if step.action == "launch" else "serving" if step.action == "route" else "draining"
    )
    return [*others, Running(revision=step.revision, replica=step.replica, phase=phase)]


def all_steps(running: Sequence[Running], wanted: Wanted, limits: Limits) -> list[Step]:
    """Decide everything that is to be done, as far as it can be told before it is begun.

    Args:
        running: As for `next_steps`.
        wanted: As for `next_steps`.
        limits: As for `next_steps`.

    Returns:
        The steps of all rounds, in their order.
    """
    steps: list[Step] = []
    while round_of_steps := next_steps(running, wanted, limits):
        for step in round_of_steps:
            running = after(running, step)
        steps += round_of_steps
    return steps


def _to_spare(running: Sequence[Running], wanted: Wanted, limits: Limits) -> Iterator[Running]:
    """Yield the replicas without which enough serve, in all and of each group."""
    serving = [r for r in running if r.phase == "serving"]
    left = Counter(wanted.group(r.revision, r.replica) for r in serving)
    needed: Counter[str] = Counter()
    if wanted.revision is not None:
        needed.update(wanted.group(wanted.revision, number) for number in wanted.numbers)
    spare = len(serving) - max(wanted.replicas - limits.max_unavailable, 0)
    surplus = (r for r in serving if not _is_wanted(r, wanted))
    for replica in sorted(surplus, key=lambda r: (r.revision, r.replica)):
        group = wanted.group(replica.revision, replica.replica)
        if spare > 0 and left[group] > max(needed[group] - limits.max_unavailable, 0):
            spare -= 1
            left[group] -= 1
            yield replica


def _is_wanted(replica: Running, wanted: Wanted) -> bool:
    return replica.revision == wanted.revision and replica.replica in wanted.numbers


def _step(action: Literal["route", "drain", "remove"], replica: Running) -> Step:
    return Step(action=action, revision=replica.revision, replica=replica.replica)
