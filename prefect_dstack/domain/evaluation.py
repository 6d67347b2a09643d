"""What is known of a new revision before it gets a request, and what somebody made of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Evaluation", "Release"]


class Release(BaseModel):
    """A new revision that is ready, and gets no requests yet, or those of a canary.

    Both addresses are on 127.0.0.1 of the machine that runs the flow. They lead to one replica each, past
    the gateway: no token is needed, and nobody else can use them. They end with the evaluation.
    """

    model_config = ConfigDict(frozen=True)

    service: str = Field(description="The name of the service.")
    revision: int = Field(description="The revision that is evaluated.")
    candidate_url: str = Field(description="Where a replica of it answers.")
    weight: float = Field(
        default=0.0, description="The share of the requests that it gets meanwhile, in percent; 0: none yet."
    )
    serving_revision: int | None = Field(default=None, description="The revision that serves; None: none.")
    serving_url: str | None = Field(default=None, description="Where a replica of that one answers.")


class Evaluation(BaseModel):
    """Whether a new revision may take over.

    Example:
        >>> Evaluation(passed=0.91 >= 0.90, score=0.91, reason="accuracy 0.91, at least 0.90").passed
        True
    """

    model_config = ConfigDict(frozen=True)

    passed: bool = Field(description="Whether it may.")
    score: float | None = Field(default=None, description="How good it is, for the history.")
    reason: str = Field(default="", description="Why, in one line.")
    table: list[dict[str, Any]] = Field(
        default_factory=list, description="Rows of figures, shown as an artifact of the flow run."
    )

    @property
    def summary(self) -> str:
        """The verdict, the score and the reason, in one line."""
        score = "" if self.score is None else f", score {self.score:g}"
        reason = f": {self.reason}" if self.reason else ""
        return f"{'passed' if self.passed else 'rejected'}{score}{reason}"
