"""The record of a service: what was wanted, which revisions there were, and how each ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.errors import NotFoundError

__all__ = ["LOST", "Deploying", "Endpoint", "Outcome", "Revision", "Rollback", "ServiceRecord"]

# The reason of a deployment that was found unfinished by whoever came next.
LOST = "its flow run ended before it was done"

Outcome = Literal["deploying", "active", "superseded", "failed", "stopped"]


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
    model: str | None = Field(
        default=None, description="The name of the model, as an OpenAI client asks for it."
    )
    service: str = Field(description="The name of the service.")
    revision: int = Field(description="The revision that serves.")
    replicas: list[str] = Field(description="The names of the replicas that serve.")
    changed: bool = Field(default=True, description="Whether the deployment changed anything.")
    superseded: bool = Field(
        default=False,
        description="Whether nothing was done, as a later request was served while this one waited.",
    )

    def __str__(self) -> str:
        return self.url


class Rollback(BaseModel):
    """One return to an earlier revision."""

    model_config = ConfigDict(frozen=True)

    at: datetime = Field(description="When it began.")
    by: str = Field(default="", description="Who did it: user and machine.")
    flow_run: str = Field(default="", description="The id of the flow run that did it.")


class Revision(BaseModel):
    """One immutable version of a service."""

    model_config = ConfigDict(frozen=True)

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
    outcome: Outcome = Field(default="deploying", description="How its deployment ended.")
    reason: str = Field(default="", description="Why it failed, in one line.")
    rollbacks: list[Rollback] = Field(
        default_factory=list, description="The returns to it from later revisions, the oldest first."
    )

    def returned_to(self, rollback: Rollback) -> Revision:
        """Note that a rollback puts it on the air again.

        Args:
            rollback: Who does it, and when.

        Returns:
            The new revision.
        """
        return self.model_copy(update={"rollbacks": [*self.rollbacks, rollback]})


class Deploying(BaseModel):
    """A deployment that is under way, so that others can finish or undo it if it dies."""

    model_config = ConfigDict(frozen=True)

    revision: int | None = Field(description="The revision that is being put on the air; None: a stop.")
    flow_run: str = Field(description="The id of the flow run that does it.")
    lease: str = Field(default="", description="The id of the lease with which it holds the service's lock.")
    machine: str = Field(default="", description="The machine that the flow run's process runs on.")
    process: int | None = Field(default=None, description="The process id there.")
    process_started: float | None = Field(default=None, description="When it started; ids are given again.")


class ServiceRecord(BaseModel):
    """All that is remembered of one service."""

    model_config = ConfigDict(frozen=True)

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
    def active_revision(self) -> Revision | None:
        """The revision that shall serve."""
        return None if self.active is None else self.revision(self.active)

    def begun(self, revision: Revision, deploying: Deploying, retain: int) -> ServiceRecord:
        """Note that a deployment begins.

        Args:
            revision: The revision that is put on the air.
            deploying: Who does it.
            retain: How many revisions are kept beside this one that have served, and as many that failed; the
                active one always is.

        Returns:
            The new record.
        """
        before = self
        if self.deploying is not None and self.deploying.revision is not None:
            before = self.failed(self.deploying.revision, LOST)
        others = [known for known in before.revisions if known.number != revision.number]
        failed = [known for known in others if known.outcome == "failed"]
        served = [known for known in others if known.outcome != "failed"]
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
        """Note that a revision serves now.

        Args:
            number: The revision.
            endpoint: Where it answers.

        Returns:
            The new record.
        """
        before = None if self.active == number else self.active
        record = self._with_outcome(before, "superseded") if before is not None else self
        return record._with_outcome(number, "active").model_copy(  # noqa: SLF001 - of its own kind
            update={"active": number, "endpoint": endpoint, "deploying": None}
        )

    def failed(self, number: int, reason: str) -> ServiceRecord:
        """Note that a revision did not make it.

        Args:
            number: The revision.
            reason: Why, in one line.

        Returns:
            The new record; what served before serves on.
        """
        record = self if number == self.active else self._with_outcome(number, "failed", reason)
        return record.model_copy(update={"deploying": None})

    def stopped(self) -> ServiceRecord:
        """Note that the service is off the air.

        Returns:
            The new record.
        """
        record = self if self.active is None else self._with_outcome(self.active, "stopped")
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


def now() -> datetime:
    """Tell the time.

    Returns:
        The time now, in UTC, to the second.
    """
    return datetime.now(timezone.utc).replace(microsecond=0)


def readable(configuration: Mapping[str, Any]) -> str:
    """Write a recorded configuration as the YAML a user would write.

    Args:
        configuration: From a revision.

    Returns:
        YAML text.
    """
    import yaml

    return str(yaml.safe_dump(dict(configuration), sort_keys=False))
