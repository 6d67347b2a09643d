"""Provisioning settings: the keys that configurations and profiles share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import (
    Address,
    BackendName,
    Identifier,
    Line,
    Reference,
    Tags,
    Text,
)
from prefect_dstack.configurations.resources import Resources
from prefect_dstack.configurations.scalars import Duration, Number, OffableDuration, Whole

SpotPolicy = Literal["spot", "on-demand", "auto"]
RetryEvent = Literal["no-capacity", "interruption", "error"]

# As in dstack, a week begins on Monday, which is 0.
_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_CRON_NAMES = (
    dict(
        zip(
            ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
            range(1, 13),
            strict=True,
        )
    ),
    dict(zip(["mon", "tue", "wed", "thu", "fri", "sat", "sun"], range(7), strict=True)),
)
_CRON_ITEM = re.compile(r"(\*|[0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?(?:/([1-9][0-9]?))?")


def parse_cron(value: str) -> str:
    """Accept a cron expression of five fields."""
    fields = value.lower().split()
    if len(fields) != len(_CRON_RANGES) or not all(
        _cron_field(field, low, high, _CRON_NAMES[index - 3] if index >= 3 else {})
        for index, (field, (low, high)) in enumerate(zip(fields, _CRON_RANGES, strict=True))
    ):
        refuse(
            "must be a cron expression of five fields such as '0 8 * * mon-fri' (minute 0-59, hour 0-23, day "
            f"1-31, month 1-12, day of the week 0-6 from Monday), not {show(value)}"
        )
    return " ".join(fields)


def _cron_field(field: str, low: int, high: int, names: dict[str, int]) -> bool:
    for item in field.split(","):
        match = _CRON_ITEM.fullmatch(item)
        if match is None or (match[1] == "*" and match[2]):
            return False
        ends = [end for end in (match[1], match[2]) if end not in (None, "*")]
        numbers = [names.get(end, int(end) if end.isdecimal() else -1) for end in ends]
        if any(not low <= number <= high for number in numbers) or numbers != sorted(numbers):
            return False
    return True


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Cron = Annotated[str, BeforeValidator(lambda value: parse_cron(value) if isinstance(value, str) else value)]


class Retry(Model):
    """When and how long to try again; written as true, false or a mapping."""

    shorthand = ("boolean",)

    enabled: bool = Field(default=True, description="Whether to try again at all.")
    on_events: tuple[RetryEvent, ...] | None = Field(
        default=None,
        min_length=1,
        description="The events to try again after: no-capacity, interruption or error; all if not given.",
    )
    duration: Duration | None = Field(default=None, description="How long to go on trying, such as 4h or 1d.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {"enabled": value}
        if not isinstance(value, (dict, Retry)):
            refuse(f"must be true, false or a mapping of on_events and duration, not {show(value)}")
        return value


class RetryPolicy(Model):
    """The older form of `retry`."""

    retry: bool = Field(default=False, description="Whether to try again at all.")
    limit: Duration | None = Field(default=None, description="How long to go on trying, such as 4h or 1d.")
    duration: Duration | None = Field(default=None, description="The later name of limit.")


class UtilizationPolicy(Model):
    """When a run that does not use its accelerators ends."""

    min_gpu_utilization: Whole = Field(
        ge=0, le=100, description="The least use of every accelerator, in percent."
    )
    time_window: Duration = Field(
        ge=300, description="How long the use may stay below the least before the run ends, at least 5m."
    )


class Schedule(Model):
    """When to start a run."""

    cron: Annotated[
        tuple[Cron, ...],
        BeforeValidator(_listed, json_schema_input_type=str | list[str]),
        Field(min_length=1),
    ] = Field(description="A cron expression of five fields, in UTC, or a list of them.")


class InstanceSelector(Model):
    """One instance of a fleet, written as its name, or a mapping of name, hostname, or fleet and instance."""

    shorthand = ("string",)

    name: Identifier | None = Field(default=None, description="The name of the instance.")
    hostname: Address | None = Field(default=None, description="The host name or IP address of the instance.")
    fleet: Reference | None = Field(default=None, description="The fleet that the instance belongs to.")
    instance: Annotated[Whole, Field(ge=0)] | None = Field(
        default=None, description="The number of the instance in its fleet."
    )

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {key for key in ("name", "hostname", "fleet", "instance") if getattr(self, key) is not None}
        if given not in ({"name"}, {"hostname"}, {"fleet", "instance"}):
            refuse("must be a name, a hostname, or a fleet with an instance number")
        return self

    def __str__(self) -> str:
        """Return the name of the instance, which is that of its fleet and its number, or its host name."""
        if self.fleet is not None:
            # Written with the project in front, as dstack allows it.
            return f"{self.fleet.rpartition('/')[2]}-{self.instance}"
        return self.name or self.hostname or ""


class BackendOptions(Model):
    """Settings that only one backend understands."""

    model_config = ConfigDict(extra="allow")

    type: BackendName = Field(description="The backend that the settings are for.")


class ProvisioningKeys(Model):
    """The keys by which machines are chosen, held and given back."""

    backends: tuple[BackendName, ...] | None = Field(
        default=None, description="The backends that may give machines, such as [aws, ssh]."
    )
    regions: tuple[Identifier, ...] | None = Field(
        default=None, description="The regions that machines may be in, such as [eu-west-1]."
    )
    availability_zones: tuple[Identifier, ...] | None = Field(
        default=None, description="The availability zones that machines may be in, such as [eu-west-1a]."
    )
    instance_types: tuple[Identifier, ...] | None = Field(
        default=None, description="The types that machines may be of, such as [g6.xlarge]."
    )
    reservation: Identifier | None = Field(
        default=None, description="The reservation of capacity to take machines from."
    )
    spot_policy: SpotPolicy | None = Field(
        default=None, description="Whether machines may be spot instances: spot, on-demand or auto."
    )
    retry: Retry | None = Field(
        default=None, description="Whether to try again when there is no capacity, or after a failure."
    )
    max_price: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="The highest price of a machine, in US dollars an hour."
    )
    idle_duration: OffableDuration = Field(
        default=None, description="How long an idle machine is kept before it is given back; off keeps it."
    )
    tags: Tags | None = Field(default=None, description="Tags to put on what is created for this.")
    backend_options: tuple[BackendOptions, ...] | None = Field(
        default=None, description="Settings that only one backend understands."
    )
    termination_policy: Literal["dont-destroy", "destroy-after-idle"] | None = Field(
        default=None, description="The older way to say what becomes of idle machines; use idle_duration."
    )
    termination_idle_time: Duration | None = Field(
        default=None, description="The older name of idle_duration."
    )


class ProfileKeys(ProvisioningKeys):
    """The keys that a profile may set for runs."""

    max_duration: OffableDuration = Field(
        default=None, description="How long a run may run, such as 2h; off for no limit."
    )
    stop_duration: OffableDuration = Field(
        default=None,
        description="How long a run may take to stop before it is killed, such as 5m; of a service, the open "
        "requests of a replica; off for no limit. Default: 5m.",
    )
    creation_policy: Literal["reuse", "reuse-or-create"] | None = Field(
        default=None, description="Whether new machines may be created, or only existing ones reused."
    )
    utilization_policy: UtilizationPolicy | None = Field(
        default=None, description="When to end a run that does not use its accelerators."
    )
    startup_order: Literal["any", "master-first", "workers-first"] | None = Field(
        default=None, description="The order in which the nodes of a run start."
    )
    stop_criteria: Literal["all-done", "master-done"] | None = Field(
        default=None, description="When a run of several nodes is over."
    )
    schedule: Schedule | None = Field(default=None, description="When to start the run by itself.")
    fleets: tuple[Reference, ...] | None = Field(
        default=None, description="The fleets whose machines may be used."
    )
    instances: tuple[InstanceSelector, ...] | None = Field(
        default=None, min_length=1, description="The instances of fleets that may be used."
    )
    pool_name: Text | None = Field(
        default=None, description="The older name for a group of machines; use fleets."
    )
    instance_name: Text | None = Field(
        default=None, description="The older way to name one machine; use instances."
    )
    retry_policy: RetryPolicy | None = Field(default=None, description="The older form of retry.")


class Profile(ProfileKeys):
    """One entry of `.dstack/profiles.yml`."""

    name: Line = Field(description="The name by which the profile is chosen.")
    default: bool = Field(default=False, description="Whether the profile is used when none is chosen.")
    project: Line | None = Field(default=None, description="The dstack project that the profile was for.")
    resources: Resources | None = Field(default=None, description="What a replica needs of a machine.")


class ProfilesFile(Model):
    """The whole of `.dstack/profiles.yml`."""

    profiles: tuple[Profile, ...] = Field(description="The profiles, each with its name.")
