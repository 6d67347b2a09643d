"""`type: fleet`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prefect_dstack.configurations.base import ConfigurationModel, Model, refuse
from prefect_dstack.configurations.environment import Env
from prefect_dstack.configurations.interpolation import Places
from prefect_dstack.configurations.names import Name
from prefect_dstack.configurations.profile import ProvisioningKeys
from prefect_dstack.configurations.resources import Resources
from prefect_dstack.configurations.scalars import Count, CountRange
from prefect_dstack.configurations.ssh import Blocks, SshConfig


class FleetNodes(Model):
    """How many instances a fleet has, written as `2`, `0..4` or a mapping."""

    shorthand = ("integer", "string")

    min: Count = Field(default=0, description="The least number of instances that are kept.")
    target: Count | None = Field(
        default=None, description="The number of instances to create at first; min if not given."
    )
    max: Count | None = Field(
        default=None, description="The greatest number of instances; no limit if not given."
    )

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: number for key, number in value.items() if number is not None}
        if isinstance(value, FleetNodes):
            return value
        ends = CountRange.model_validate(value)
        return {key: end for key, end in (("min", ends.min), ("max", ends.max)) if end is not None}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < max(self.min, self.target or 0):
            refuse("must not be less than min or target", key="max")
        if self.target is not None and self.target < self.min:
            refuse("must not be less than min", key="target")
        return self

    @property
    def first(self) -> int:
        """The number of instances to create at first."""
        return self.min if self.target is None else self.target


class FleetConfiguration(ConfigurationModel, ProvisioningKeys):
    """Machines that are kept for runs: hosts that are there already, or instances of a cloud."""

    places: ClassVar[Places] = Places(
        secrets=(
            ("env", "*"),
            ("ssh_config", "ssh_key"),
            ("ssh_config", "proxy_jump", "ssh_key"),
            ("ssh_config", "hosts", "*", "ssh_key"),
            ("ssh_config", "hosts", "*", "proxy_jump", "ssh_key"),
        ),
        environment=(("env", "*"),),
    )

    type: Literal["fleet"] = Field(default="fleet", description="The type of the configuration.")
    name: Name | None = Field(
        default=None,
        description="The name of the fleet; the file's name without .dstack.yml if it is not given.",
    )
    ssh_config: SshConfig | None = Field(default=None, description="The hosts that the fleet consists of.")
    env: Env = Field(
        default_factory=dict, repr=False, description="The environment variables of the machines' set-up."
    )
    nodes: FleetNodes | None = Field(default=None, description="The number of instances, or a range of it.")
    placement: Literal["any", "cluster"] | None = Field(
        default=None, description="Whether the instances must be near each other: any or cluster."
    )
    resources: Resources | None = Field(default=None, description="What is needed of each instance.")
    blocks: Blocks = Field(default=1, description="Into how many parts a machine is split, a number or auto.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ssh_config is not None and self.nodes is not None:
            refuse(
                "is for machines of a cloud; the hosts of 'ssh_config' are counted as they are", key="nodes"
            )
        return self
