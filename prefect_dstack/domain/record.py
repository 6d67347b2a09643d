"""The record of a service: what is wanted, which revisions there were, and how each ended.

Records are shared by all who deploy through one Prefect API, whichever version they have. Fields that this
version does not know are kept as they are; a record of a newer `version` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.evaluation import Evaluation
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.groups import (
    group_name,
    group_names,
    is_scaled,
    may_be_interrupted,
    replica_numbers,
    router_group,
)
from prefect_dstack.errors import NotFoundError, UserError
from prefect_dstack.hosts.identity import MachineIdentity

__all__ = [
    "AUTOSCALER",
    "LOST",
    "MOST_REPLICAS",
    "RECORD_VERSION",
    "Decision",
    "Deploying",
    "DesiredReplicas",
    "Endpoint",
    "Outcome",
    "PendingApproval",
    "Replacement",
    "Revision",
    "Rollback",
    "ServiceRecord",
    "check_replicas",
]

RECORD_VERSION = 2
"""Raised when older versions of prefect-dstack would misread a record; new fields do not raise it."""

SCALINGS_KEPT = 20
MOST_REPLICAS = 1000

# Who wants a number of replicas that follows the load.
AUTOSCALER = "autoscaler"

# The reason of a deployment that was found unfinished by whoever came next.
LOST = "its flow run ended before it was done"

Outcome = Literal["deploying", "active", "superseded", "failed", "stopped"]


class _Part(BaseModel):
    """A part of a record; what a newer version has written into it is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class PendingApproval(_Part):
    """A revision that waits for a person, and for no process."""

    revision: int = Field(description="The revision that waits.")
    flow_run: str = Field(description="The id of the flow run that asked.")
    requested_at: datetime = Field(description="Since when it waits.")
    expires_at: datetime | None = Field(
        default=None, description="When it is rejected by itself; None: never."
    )
    question: str = Field(default="", description="What is to be decided, in one line.")
    gateway: str = Field(default="", description="The gateway that is to route it.")
    private_url: str = Field(
        default="",
        description="Where one of its replicas answers on its machine, past the gateway and without a token.",
    )
    machine: str = Field(default="", description="The machine on which the private URL can be reached.")

    @property
    def until(self) -> str:
        """When its time is over, to be read by people."""
        return "further notice" if self.expires_at is None else f"{self.expires_at:%Y-%m-%d %H:%M:%S} UTC"

    def is_expired(self, at: datetime) -> bool:
        """Return whether the time to decide is over.

        Args:
            at: The time to compare with.
        """
        return self.expires_at is not None and self.expires_at <= at


class Decision(_Part):
    """What became of a revision that waited for approval."""

    approved: bool = Field(description="Whether it was approved.")
    by: str = Field(default="", description="Who decided: user and machine, or a name; empty: nobody did.")
    at: datetime = Field(description="When.")
    reason: str = Field(default="", description="Why, in one line.")


class Endpoint(BaseModel):
    """Where a service answers, and what answers there.

    Example:
        >>> endpoint = Endpoint(url="http://127.0.0.1:8080", service="hello", revision=1, replicas=[])
        >>> print(endpoint)
        http://127.0.0.1:8080
    """

    model_config = ConfigDict(frozen=True)

    url: str = Field(description="The URL of the service, without a trailing slash.")
    openai_base_url: str | None = Field(
        default=None,
        description="What an OpenAI client takes as `base_url`; set when the service has a `model`.",
    )
    gateway_openai_base_url: str | None = Field(
        default=None,
        description="What an OpenAI client takes as `base_url` to ask any model of the gateway; set when the "
        "service has a `model`.",
    )
    model: str | None = Field(
        default=None, description="The name of the model, as an OpenAI client asks for it."
    )
    auth: bool = Field(default=False, description="Whether requests need a token.")
    service: str = Field(description="The name of the service.")
    revision: int = Field(description="The revision that serves.")
    replicas: list[str] = Field(description="The names of the replicas that serve.")
    changed: bool = Field(default=True, description="Whether the deployment changed anything.")
    superseded: bool = Field(
        default=False,
        description="Whether nothing was done, as a later request was served while this one waited.",
    )
    waiting: PendingApproval | None = Field(
        default=None,
        description="The revision that waits for approval, while the one before serves on; None: none does.",
    )

    def __str__(self) -> str:
        return self.url


class Rollback(_Part):
    """One return to an earlier revision."""

    at: datetime = Field(description="When it began.")
    by: str = Field(default="", description="Who did it: user and machine.")
    flow_run: str = Field(default="", description="The id of the flow run that did it.")


class DesiredReplicas(_Part):
    """How many replicas a service is to have: no part of a revision, and kept by those that follow."""

    replicas: int = Field(ge=0, description="Their number, of all groups together.")
    before: int | None = Field(default=None, description="How many there were to be before; None: not known.")
    groups: dict[str, int] = Field(
        default_factory=dict, description="The number of each group; empty for a service without groups."
    )
    set_by: str = Field(
        description="`configuration`: as the file says; `autoscaler`; else who it was: user and machine."
    )
    set_at: datetime = Field(description="When.")
    reason: str = Field(default="", description="Why, in one line.")
    pinned: bool = Field(
        default=False, description="Whether it stays until somebody releases it, whatever the file says."
    )
    preferred: tuple[int, ...] = Field(
        default=(), description="Numbers of replicas that are taken before lower ones; empty: the lowest are."
    )

    @property
    def summary(self) -> str:
        """The number, or that of each group, to be read by people."""
        if not self.groups:
            return str(self.replicas)
        return ", ".join(f"{name} {count}" for name, count in self.groups.items())

    def numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the numbers of the replicas that are wanted.

        Args:
            names: The names of the groups of the service.
        """
        return replica_numbers(self.counts(names), self.preferred)

    def counts(self, names: Sequence[str]) -> list[int]:
        """Return how many replicas of each group are wanted.

        Args:
            names: The names of the groups of the service.
        """
        return [self.groups.get(name, 0) for name in names] if self.groups else [self.replicas]

    def preferring(self, numbers: Sequence[int], names: Sequence[str]) -> DesiredReplicas:
        """Return the same for certain replicas, and not for those with the lowest numbers.

        Args:
            numbers: The numbers of the replicas; empty: the lowest again.
            names: The names of the groups of the service.
        """
        lowest = self.model_copy(update={"preferred": ()})
        if not numbers or tuple(numbers) == lowest.numbers(names):
            return lowest
        return self.model_copy(update={"preferred": tuple(numbers)})

    @property
    def change(self) -> str:
        """From how many to how many, and why, in one line."""
        numbers = f"{'?' if self.before is None else self.before} → {self.replicas}"
        if self.groups:
            numbers = f"{numbers} ({self.summary})"
        return f"{numbers}: {self.reason}" if self.reason else numbers


class Replacement(_Part):
    """That a replica was replaced because it had stopped answering."""

    at: datetime = Field(description="When.")
    times: int = Field(default=1, ge=1, description="How often it was, with no long time in between.")
    reason: str = Field(default="", description="Why, in one line.")


class Revision(_Part):
    """One immutable version of a service."""

    number: int = Field(ge=1, description="Counted from 1, never given twice.")
    configuration: dict[str, Any] = Field(description="As written; secrets only as references.")
    directory: str = Field(description="What the configuration's relative paths start from.")
    workload: str = Field(description="A digest of all that takes new replicas when it changes.")
    settings: str = Field(description="A digest of all the rest.")
    created_at: datetime = Field(description="When its deployment began.")
    created_by: str = Field(default="", description="Who deployed it: user and machine.")
    flow_run: str = Field(default="", description="The id of the flow run that deployed it.")
    replicas_of: int = Field(
        description="The revision whose replicas it uses: its own, or one that differs in settings only."
    )
    bundle: str = Field(default="", description="The digest of its own copy of its files; empty: no files.")
    model_version: str = Field(
        default="", description="What tells the content of its model from any other; empty: not known."
    )
    annotations: dict[str, Any] = Field(
        default_factory=dict, description="What its deployer has written on it, such as a commit."
    )
    values: dict[str, str] = Field(
        default_factory=dict,
        description="Digests of values that are not in the configuration, by what holds them: `env.TOKEN`.",
    )
    served_at: datetime | None = Field(
        default=None, description="When it last began to serve; None: it never has."
    )
    outcome: Outcome = Field(default="deploying", description="How its deployment ended.")
    reason: str = Field(default="", description="Why it failed, in one line.")
    evaluation: Evaluation | None = Field(
        default=None, description="What its evaluation found; None: it was not evaluated."
    )
    decision: Decision | None = Field(
        default=None, description="What became of its approval; None: nobody was asked, or it waits still."
    )
    rollbacks: list[Rollback] = Field(
        default_factory=list, description="The returns to it from later revisions, the oldest first."
    )

    @property
    def is_rejected(self) -> bool:
        """Whether its evaluation, or a person, has decided that it is not to serve."""
        judged = self.evaluation is not None and not self.evaluation.passed
        return judged or (self.decision is not None and not self.decision.approved)

    @property
    def runtime(self) -> str:
        """What its replicas run in: `docker` or `process`."""
        return runtime_of(self.configuration)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of its replicas; one empty name where there are none."""
        return group_names(self.configuration)

    def decided(self, decision: Decision) -> Revision:
        """Return the revision with what became of its approval.

        Args:
            decision: What was decided, by whom and when.
        """
        return self.model_copy(update={"decision": decision})

    def returned_to(self, rollback: Rollback) -> Revision:
        """Return the revision with a rollback to it noted.

        Args:
            rollback: Who does it, and when.
        """
        return self.model_copy(update={"rollbacks": [*self.rollbacks, rollback]})


class Deploying(_Part):
    """A deployment that is under way, so that others can finish or undo it if it dies."""

    revision: int | None = Field(description="The revision that is being deployed; None: a stop.")
    flow_run: str = Field(description="The id of the flow run that does it.")
    lease: str = Field(default="", description="The id of the lease with which it holds the service's lock.")
    location: MachineIdentity | None = Field(
        default=None, description="The machine that it moves the service to; None: where the service is."
    )
    machine: str = Field(default="", description="The machine that the flow run's process runs on.")
    process: int | None = Field(default=None, description="The process id there.")
    process_started: float | None = Field(
        default=None,
        description="When it started, in seconds after its machine did; ids are given again.",
    )
    heartbeat: float | None = Field(
        default=None, description="Seconds between the heartbeats of the flow run; None: it sends none."
    )


class ServiceRecord(_Part):
    """All that is remembered of one service."""

    version: int = Field(default=RECORD_VERSION, description="Which versions of prefect-dstack read it.")
    kind: Literal["service"] = Field(default="service", description="What it is the record of.")
    name: str = Field(description="The name of the service.")
    salt: str = Field(description="Mixed into digests, so that they tell nothing of the values behind them.")
    gateway: str = Field(default="local", description="The gateway in front of its replicas.")
    active: int | None = Field(
        default=None, description="The revision that shall serve; None: the service is stopped."
    )
    revisions: list[Revision] = Field(default_factory=list, description="The last ones, oldest first.")
    last_revision: int = Field(default=0, description="The highest number that was ever given.")
    deploying: Deploying | None = Field(default=None, description="The deployment that is under way.")
    endpoint: Endpoint | None = Field(default=None, description="Where the service answers.")
    taken_off: bool = Field(default=False, description="Whether it was stopped since it was last deployed.")
    desired: DesiredReplicas | None = Field(
        default=None, description="How many replicas it is to have; None: what its revision began with."
    )
    scalings: list[DesiredReplicas] = Field(
        default_factory=list, description="The last changes of that number, the oldest first."
    )
    replacements: dict[str, Replacement] = Field(
        default_factory=dict,
        description="By replica, of the revision that serves: when it was last replaced for not answering.",
    )
    location: MachineIdentity | None = Field(
        default=None,
        description="The one machine on which it can be changed, as its replicas or its gateway are there; "
        "None: any machine that reaches the same hosts.",
    )
    left_behind: list[MachineIdentity] = Field(
        default_factory=list,
        description="Machines that it was moved away from, on which something of it may still run.",
    )
    approval: PendingApproval | None = Field(
        default=None, description="The revision that waits for approval beside the one that serves."
    )
    asked_at: datetime | None = Field(
        default=None, description="When what serves now, or that nothing does, was asked for."
    )

    def revision(self, number: int) -> Revision:
        """Find a revision.

        Args:
            number: Its number.

        Returns:
            The revision.

        Raises:
            NotFoundError: If it is not kept any more, or never was.
        """
        for revision in self.revisions:
            if revision.number == number:
                return revision
        kept = ", ".join(str(revision.number) for revision in self.revisions) or "none"
        raise NotFoundError(f"{self.name}: there is no revision {number}; kept are: {kept}")

    @property
    def wanted_replicas(self) -> int:
        """How many replicas it is to have; none while nothing is to serve."""
        return 0 if self.active is None or self.desired is None else self.desired.replicas

    @property
    def wanted_numbers(self) -> tuple[int, ...]:
        """The numbers of the replicas that it is to have."""
        active = self.active_revision
        return () if active is None or self.desired is None else self.desired.numbers(active.groups)

    @property
    def groups(self) -> dict[int, tuple[str, ...]]:
        """The names of the groups of replicas, by the revision whose number the replicas bear."""
        return {revision.replicas_of: revision.groups for revision in self.revisions}

    @property
    def routers(self) -> dict[int, str]:
        """The names of the groups that route requests to others, by revision as in `groups`."""
        found = {revision.replicas_of: router_group(revision.configuration) for revision in self.revisions}
        return {number: name for number, name in found.items() if name is not None}

    def is_direct(self, revision: int, number: int) -> bool:
        """Return whether a replica gets its requests from the gateway, and not from a router.

        Args:
            revision: The revision whose number it bears.
            number: Its own number.
        """
        return self.routers.get(revision) in (None, self.group_of(revision, number))

    def group_of(self, revision: int, number: int) -> str:
        """Return the group of a replica; empty where there are none.

        Args:
            revision: The revision whose number it bears.
            number: Its own number.
        """
        return group_name(self.groups.get(revision, ("",)), number)

    @property
    def runtimes(self) -> frozenset[str]:
        """What the replicas of its revisions may run in: `docker`, `process`."""
        found = {revision.runtime for revision in self.revisions}
        # Earlier versions ran everything without an image as a process, wherever it might have been.
        if not all(revision.configuration.get("image") for revision in self.revisions):
            found.add("process")
        return frozenset(found)

    @property
    def active_revision(self) -> Revision | None:
        """The revision that shall serve."""
        return None if self.active is None else self.revision(self.active)

    @property
    def wanted_names(self) -> frozenset[str]:
        """The names of the replicas that are to serve."""
        return frozenset(self.numbers_by_name)

    @property
    def numbers_by_name(self) -> dict[str, int]:
        """The numbers of the replicas that are to serve, by their names."""
        active = self.active_revision
        if active is None:
            return {}
        return {f"{self.name}-{active.replicas_of}-{number}": number for number in self.wanted_numbers}

    @property
    def needs_controller(self) -> bool:
        """Whether it does what it is to do only while a controller watches.

        It scales, has to be woken, has replicas that are replaced when they hang, or ones on spot machines.
        """
        active = self.active_revision
        if active is None:
            return False
        keys = active.configuration
        watched = keys.get("restart_after") is not None or may_be_interrupted(keys)
        return self.wanted_replicas == 0 or watched or is_scaled(keys)

    def begun(self, revision: Revision, deploying: Deploying, retain: int) -> ServiceRecord:
        """Return the record with a deployment begun.

        Args:
            revision: The revision that is deployed.
            deploying: Who does it.
            retain: How many revisions are kept beside this one that have served, and as many that failed; the
                active one always is.

        Returns:
            The new record.
        """
        others = [known for known in self.abandoned().revisions if known.number != revision.number]
        failed = [known for known in others if known.outcome == "failed" and known.served_at is None]
        served = [known for known in others if known.outcome != "failed" or known.served_at is not None]
        recent = {self.active}
        for kind in (failed, served):
            recent |= {known.number for known in kind[-retain:]}
        revisions = [known for known in others if known.number in recent]
        revisions = sorted([*revisions, revision], key=lambda known: known.number)
        return self.model_copy(
            update={
                "revisions": revisions,
                "last_revision": max(self.last_revision, revision.number),
                "deploying": deploying,
                "taken_off": False,
            }
        )

    def served(self, number: int, endpoint: Endpoint) -> ServiceRecord:
        """Return the record with a revision that serves.

        Args:
            number: The revision.
            endpoint: Where it answers.

        Returns:
            The new record.
        """
        before = None if self.active == number else self.active
        record = self._with_outcome(before, "superseded") if before is not None else self
        served = record._with_outcome(number, "active")  # noqa: SLF001 - of its own kind
        revisions = [
            revision.model_copy(update={"served_at": datetime.now(UTC)})
            if revision.number == number
            else revision
            for revision in served.revisions
        ]
        return served.model_copy(
            update={"active": number, "endpoint": endpoint, "deploying": None, "revisions": revisions}
        )

    def pending(self) -> PendingApproval | None:
        """Return the approval that can still be given; None if there is none, or its time is over."""
        if self.approval is None or self.approval.is_expired(now()):
            return None
        return self.approval

    def waiting(self, approval: PendingApproval) -> ServiceRecord:
        """Return the record with a revision that waits for approval, and for no process.

        Args:
            approval: Which revision, and until when.
        """
        return self.model_copy(update={"approval": approval, "deploying": None})

    def withdrawn(self, decision: Decision) -> ServiceRecord:
        """Return the record without the revision that waits for approval.

        Args:
            decision: Why it is not to serve.
        """
        if self.approval is None:
            return self
        number = self.approval.revision
        record = self._with_outcome(number, "failed", decision.reason)
        revisions = [
            revision.decided(decision) if revision.number == number else revision
            for revision in record.revisions
        ]
        return record.model_copy(update={"approval": None, "revisions": revisions})

    def evaluated(self, number: int, evaluation: Evaluation) -> ServiceRecord:
        """Return the record with what the evaluation of a revision found.

        Args:
            number: The revision.
            evaluation: What was found.
        """
        revisions = [
            revision.model_copy(update={"evaluation": evaluation}) if revision.number == number else revision
            for revision in self.revisions
        ]
        return self.model_copy(update={"revisions": revisions})

    @property
    def previous_revision(self) -> Revision:
        """The revision that served last, apart from the active one: what a rollback returns to.

        Raises:
            NotFoundError: If none is kept.
        """
        served = [
            revision
            for revision in self.revisions
            if revision.served_at is not None and revision.number != self.active
        ]
        if not served:
            raise NotFoundError(
                f"{self.name}: no earlier revision that has served is kept ('retain' says how many are)"
            )
        return max(served, key=lambda revision: (revision.served_at, revision.number))

    @property
    def changed_at(self) -> datetime:
        """When another revision, or another number of replicas, last became what is wanted, in UTC."""
        active = self.active_revision
        moments = [
            None if active is None else active.served_at,
            None if self.desired is None else self.desired.set_at,
        ]
        return max((it for it in moments if it is not None), default=datetime.min.replace(tzinfo=UTC))

    def released(self) -> ServiceRecord:
        """Return the record with a number of replicas that its configuration may change again."""
        if self.desired is None:
            return self
        return self.model_copy(update={"desired": self.desired.model_copy(update={"pinned": False})})

    def scaled(self, desired: DesiredReplicas) -> ServiceRecord:
        """Return the record with another number of replicas wanted.

        Args:
            desired: The number, who wants it and why.
        """
        known = self.desired
        if known is not None and (known.replicas, known.groups) == (desired.replicas, desired.groups):
            return self.model_copy(update={"desired": desired.model_copy(update={"before": known.before})})
        before = None if known is None else self.wanted_replicas
        desired = desired.model_copy(update={"before": before})
        return self.model_copy(
            update={"desired": desired, "scalings": [*self.scalings, desired][-SCALINGS_KEPT:]}
        )

    def failed(self, number: int, reason: str) -> ServiceRecord:
        """Return the record with a revision that failed.

        Args:
            number: The revision.
            reason: Why, in one line.

        Returns:
            The new record; what served before serves on.
        """
        record = self if number == self.active else self._with_outcome(number, "failed", reason)
        waits = self.approval is not None and self.approval.revision != number
        return record.model_copy(update={"deploying": None, "approval": self.approval if waits else None})

    def abandoned(self) -> ServiceRecord:
        """Return the record without the deployment that was under way when its process died, if there is one.

        Only for who holds the lock of the service: the process of a deployment that is alive has it.
        """
        if self.deploying is None or self.deploying.revision is None:
            return self
        return self.failed(self.deploying.revision, LOST)

    def stopped(self) -> ServiceRecord:
        """Return the record of the service as stopped.

        Returns:
            The new record.
        """
        stopped = Decision(approved=False, at=now(), reason="the service was stopped")
        record = self.abandoned().withdrawn(stopped)
        record = record if self.active is None else record._with_outcome(self.active, "stopped")  # noqa: SLF001 - of its own kind
        return record.model_copy(
            update={"active": None, "endpoint": None, "deploying": None, "taken_off": True}
        )

    def _with_outcome(self, number: int, outcome: Outcome, reason: str = "") -> ServiceRecord:
        return self.model_copy(
            update={
                "revisions": [
                    revision.model_copy(update={"outcome": outcome, "reason": reason})
                    if revision.number == number
                    else revision
                    for revision in self.revisions
                ]
            }
        )


def check_replicas(number: int) -> None:
    """Refuse a number of replicas that makes no sense.

    Args:
        number: How many there are to be.

    Raises:
        UserError: If it is negative, or far too great.
    """
    if not 0 <= number <= MOST_REPLICAS:
        raise UserError(f"the number of replicas must be from 0 to {MOST_REPLICAS}, not {number}")


def now() -> datetime:
    """Return the time.

    Returns:
        The time now, in UTC, to the second.
    """
    return datetime.now(UTC).replace(microsecond=0)


def readable(configuration: Mapping[str, Any]) -> str:
    """Return a recorded configuration as the YAML a user would write.

    Args:
        configuration: From a revision.

    Returns:
        YAML text.
    """
    import yaml

    return str(yaml.safe_dump(dict(configuration), sort_keys=False))
