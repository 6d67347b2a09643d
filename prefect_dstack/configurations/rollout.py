"""How one revision of a service takes over from another, and how many replicas there are."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.names import DeploymentName, Text, WebAddress
from prefect_dstack.configurations.scalars import Amount, Duration, Number, Percent

Share = Annotated[Percent, Field(gt=0, lt=100)]


class Canary(Model):
    """A share of the traffic goes to the new revision first, which must do no worse than the old one."""

    weight: Share = Field(
        default=10.0, description="The share of the requests that the new revision gets, such as 10%."
    )
    duration: Duration = Field(default=600, description="How long the two are compared.")
    steps: tuple[Share, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Growing shares of the requests, such as [5%, 25%, 50%], instead of one `weight`: the "
        "new revision is judged at each, and gets the next one if it passes.",
    )
    pause: Duration = Field(
        default=600,
        description="How long the two are compared at each of the `steps`, instead of `duration`.",
    )
    max_error_rate: Percent = Field(
        default=1.0,
        description="The greatest share of failed requests, such as 1%, beyond the old revision's.",
    )
    max_latency_p95_ratio: Annotated[Number, Field(gt=0)] = Field(
        default=1.5, description="How many times the old revision's 95th percentile of latency is still good."
    )
    promote: Literal["auto", "manual"] = Field(
        default="auto",
        description="Whether the new revision takes over by itself, or when a person resumes the flow run.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.steps is None:
            if self._says("pause"):
                refuse("needs 'steps' beside it; without them it is 'duration'", key="pause")
            return self
        for key, instead in (("weight", "the steps say"), ("duration", "'pause' says")):
            if self._says(key):
                refuse(f"cannot be beside 'steps': {instead} it", key=key)
        if any(share >= following for share, following in itertools.pairwise(self.steps)):
            refuse("must grow from step to step", key="steps")
        return self

    def _says(self, key: str) -> bool:
        # Not whether it was given: what is written out with all its defaults must load again.
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class Rollout(Model):
    """How a new revision takes over."""

    strategy: Literal["rolling", "blue-green", "recreate", "canary"] = Field(
        default="rolling", description="The way to take over: rolling, blue-green, recreate or canary."
    )
    max_surge: Amount = Field(
        default=1,
        description="How many replicas beyond the wanted number may run meanwhile, such as 1 or 25%.",
    )
    max_unavailable: Amount = Field(
        default=0,
        description="How many replicas of the wanted number may be missing meanwhile, such as 1 or 25%.",
    )
    timeout: Annotated[Duration, Field(ge=1)] = Field(
        default=600, description="How long new replicas may take to pass their probes, such as 10m."
    )
    canary: Canary | None = Field(default=None, description="The terms of the canary strategy.")
    evaluation: DeploymentName | None = Field(
        default=None,
        description="The Prefect deployment that judges new replicas before they get requests, as "
        "flow-name/deployment-name. It runs on the machine that deploys, and is given the release.",
    )
    evaluation_timeout: Annotated[Duration, Field(ge=1)] = Field(
        default=3600, description="How long it may take, the wait for a worker included, such as 1h."
    )
    approval: bool = Field(
        default=False, description="Whether a person must approve new replicas before they get requests."
    )
    approval_timeout: Annotated[Duration, Field(ge=1)] = Field(
        default=86400, description="How long they wait for that before they are removed, such as 24h."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.max_surge in (0, "0%") and self.max_unavailable in (0, "0%"):
            refuse(
                "cannot be 0 while max_unavailable is 0, or no replica could ever be replaced",
                key="max_surge",
            )
        if self.strategy == "canary" and self.max_surge in (0, "0%"):
            refuse("cannot be 0 with strategy canary: it runs beside the old replicas", key="max_surge")
        if self.canary is not None and self.strategy != "canary":
            refuse("needs 'strategy: canary' beside it", key="canary")
        return self


Metric = Literal["rps", "concurrency", "queue", "latency_p95", "prometheus"]


class Scaling(Model):
    """When replicas are added and removed."""

    metric: Metric = Field(
        description="What is measured: rps (requests per second), concurrency (requests at once), queue "
        "(requests that wait), latency_p95 (seconds) or prometheus (a query)."
    )
    target: Annotated[Number, Field(gt=0)] = Field(
        description="The value of the metric that one replica should have."
    )
    query: Text | None = Field(default=None, description="The PromQL query, for metric prometheus.")
    url: WebAddress | None = Field(
        default=None, description="The address of the Prometheus server, for metric prometheus."
    )
    window: Annotated[Duration, Field(ge=1, le=3600)] | None = Field(
        default=None, description="The time over which the metric is averaged, such as 60s."
    )
    scale_up_delay: Duration = Field(
        default=5, description="For how long there must be too few replicas before some are added."
    )
    scale_down_delay: Duration = Field(
        default=600, description="For how long there must be too many replicas before some are removed."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for key in ("query", "url"):
            given = getattr(self, key) is not None
            if given and self.metric != "prometheus":
                refuse("needs 'metric: prometheus' beside it", key=key)
            if not given and key == "query" and self.metric == "prometheus":
                refuse("is missing; 'metric: prometheus' needs it", key=key)
        return self
