"""`type: task`."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.interpolation import Places
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import GroupName
from prefect_dstack.configurations.ports import PortMapping
from prefect_dstack.configurations.resources import Resources
from prefect_dstack.configurations.run import (
    PRIVATE_PLACES,
    NodeCommands,
    RunConfiguration,
    check_addresses,
    check_image_source,
    check_something_to_run,
)
from prefect_dstack.configurations.scalars import Positive


class NodeGroup(Model):
    """Nodes of a task that run something of their own."""

    name: GroupName | None = Field(
        default=None, description="The name of the group; its position if not given."
    )
    nodes: Positive = Field(default=1, description="The number of nodes in the group.")
    resources: Resources = Field(default_factory=Resources, description="What a node needs of a machine.")
    commands: NodeCommands = Field(default=(), description="The shell commands to run.")
    ports: tuple[PortMapping, ...] = Field(default=(), description="The ports of the nodes to expose.")


class TaskConfiguration(RunConfiguration):
    """Commands that run to their end."""

    places: ClassVar[Places] = Places(
        secrets=PRIVATE_PLACES,
        environment=PRIVATE_PLACES,
        nodes=(*RunConfiguration.places.nodes, ("commands", "*"), ("groups", "*", "commands", "*")),
    )

    type: Literal["task"] = Field(default="task", description="The type of the configuration.")
    commands: NodeCommands = Field(
        default=(), description="The shell commands to run; the image's own if not given."
    )
    ports: tuple[PortMapping, ...] = Field(
        default=(), description="The ports to expose, such as 8000, '80:8000' or '*:8000'."
    )
    nodes: Positive | None = Field(default=None, description="The number of nodes; one if not given.")
    groups: tuple[NodeGroup, ...] | None = Field(
        default=None,
        min_length=1,
        description="Groups of nodes that run something of their own, instead of nodes.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_image_source(self)
        if self.groups is None:
            check_something_to_run(self)
            check_addresses(self.commands, "nodes", [self.nodes or 1], "commands")
            return self
        for key in ("nodes", "commands", "ports", "entrypoint"):
            if getattr(self, key):
                refuse("belongs in each group while there are 'groups'", key=key)
        names = Counter(group.name or str(index) for index, group in enumerate(self.groups))
        name, times = names.most_common(1)[0]
        if times > 1:
            refuse(f"has {times} groups with the name {show(name)}", key="groups")
        for index, group in enumerate(self.groups):
            if not group.commands and self.image is None:
                refuse("is missing; say what the group runs", key=f"groups.{index}.commands")
            sizes = [group.nodes for group in self.groups]
            check_addresses(group.commands, "nodes", sizes, f"groups.{index}.commands")
        return self
