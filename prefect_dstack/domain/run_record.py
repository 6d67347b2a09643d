"""The record of a task or a development environment: one run after the other under one name."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.domain.record import Deploying
from prefect_dstack.hosts.identity import MachineIdentity

__all__ = ["RunRecord", "RunResult", "RunState"]

RunState = Literal["provisioning", "running", "done", "failed", "stopping", "stopped"]


class RunRecord(BaseModel):
    """All that is remembered of the last run of one name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    version: int = Field(default=2, description="Which versions of prefect-dstack read it.")
    kind: Literal["task", "dev-environment"] = Field(description="What it is the record of.")
    name: str = Field(description="The name of the run.")
    number: int = Field(ge=1, description="Which run under this name it is, counted from 1.")
    state: RunState = Field(default="provisioning", description="How it is.")
    exit_code: int | None = Field(default=None, description="How it ended.")
    reason: str = Field(default="", description="Why it failed or was stopped, in one line.")
    configuration: dict[str, Any] = Field(description="As written; secrets only as references.")
    directory: str = Field(description="What the configuration's relative paths start from.")
    runtime: str = Field(description="What its nodes run in: docker or process.")
    nodes: int = Field(default=1, description="How many nodes it has.")
    flow_run: str = Field(default="", description="The id of the flow run that made it; it has the log.")
    created_at: datetime = Field(description="When it began.")
    tried_at: datetime | None = Field(
        default=None, description="When it last found no machine; None: it does not wait for one."
    )
    ended_at: datetime | None = Field(default=None, description="When it ended.")
    created_by: str = Field(default="", description="Who began it: user and machine.")
    working: Deploying | None = Field(default=None, description="The process that takes care of it.")
    location: MachineIdentity | None = Field(
        default=None, description="The one machine on which it runs; None: hosts that others reach too."
    )

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is to run any more."""
        return self.state in ("done", "failed", "stopped")


class RunResult(BaseModel):
    """How a task or a development environment has ended."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the run.")
    number: int = Field(description="Which run under this name it was.")
    exit_code: int = Field(description="That of the node that failed first, else the master's.")
    seconds: float = Field(description="How long it took, provisioning too.")
    artifacts: list[str] = Field(default_factory=list, description="What was brought back, as local paths.")
