"""The nodes of a run: what each is, in which order they start, and when the run is over. Decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prefect_dstack.configurations import (
    DevEnvironmentConfiguration,
    PortMapping,
    Resources,
    TaskConfiguration,
)

__all__ = ["NodePlan", "RunOutcome", "node_facts", "plan_nodes", "run_outcome", "start_waves"]

NodeState = Literal["running", "exited", "gone"]


@dataclass(frozen=True)
class NodePlan:
    """One node of a task or a development environment.

    Attributes:
        rank: Its number among all nodes, from 0; the master has 0.
        group: The number of its group, from 0; None where there are no groups.
        number: Its number in the group, from 0.
        resources: What it needs of a machine.
        ports: The ports that lead to it.
    """

    rank: int
    group: int | None
    number: int
    resources: Resources
    ports: tuple[PortMapping, ...]


@dataclass(frozen=True)
class RunOutcome:
    """How a run has ended.

    Attributes:
        exit_code: That of the node that decided: the first one that failed, else the master.
        reason: Which node failed and how; empty if none has.
    """

    exit_code: int
    reason: str = ""


def plan_nodes(configuration: TaskConfiguration | DevEnvironmentConfiguration) -> list[NodePlan]:
    """Return the nodes of a run by rank.

    Args:
        configuration: The task or the development environment, which has one node.
    """
    if isinstance(configuration, DevEnvironmentConfiguration):
        return [NodePlan(0, None, 0, configuration.resources, configuration.ports)]
    if configuration.groups is None:
        return [
            NodePlan(rank, None, rank, configuration.resources, configuration.ports if rank == 0 else ())
            for rank in range(configuration.nodes or 1)
        ]
    nodes: list[NodePlan] = []
    for index, group in enumerate(configuration.groups):
        for number in range(group.nodes):
            ports = group.ports if number == 0 else ()
            nodes.append(NodePlan(len(nodes), index, number, group.resources, ports))
    return nodes


def start_waves(nodes: Sequence[NodePlan], order: str | None) -> list[list[NodePlan]]:
    """Return which nodes start together, one wave after the other.

    Args:
        nodes: All nodes.
        order: `startup_order`: any, master-first or workers-first.
    """
    master, workers = list(nodes[:1]), list(nodes[1:])
    if order == "master-first":
        waves = [master, workers]
    elif order == "workers-first":
        waves = [workers, master]
    else:
        waves = [[*master, *workers]]
    return [wave for wave in waves if wave]


def node_facts(rank: int, addresses: Sequence[str], gpus: Sequence[int]) -> dict[str, str]:
    """Return the variables that tell a node its place, named as dstack names them.

    Args:
        rank: Its number among all nodes.
        addresses: The private address of each node, by rank.
        gpus: How many accelerators each node has, by rank.
    """
    return {
        "DSTACK_NODE_RANK": str(rank),
        "DSTACK_NODES_NUM": str(len(addresses)),
        "DSTACK_NODES_IPS": "\n".join(addresses),
        "DSTACK_MASTER_NODE_IP": addresses[0],
        "DSTACK_GPUS_PER_NODE": str(gpus[rank]),
        "DSTACK_GPUS_NUM": str(sum(gpus)),
    }


def run_outcome(
    exit_codes: Mapping[int, int | None], names: Sequence[str], criteria: str | None
) -> RunOutcome | None:
    """Decide whether a run is over.

    Args:
        exit_codes: The exit code of each node that has ended, by rank; None while it runs.
        names: The names of the nodes, by rank.
        criteria: `stop_criteria`: all-done, or master-done.

    Returns:
        How it ended; None while it goes on. A node that fails ends the run.
    """
    for rank, code in sorted(exit_codes.items()):
        if code not in (None, 0):
            how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
            return RunOutcome(code if code > 0 else 128 - code, f"{names[rank]} {how}")
    if criteria == "master-done":
        return None if exit_codes.get(0) is None else RunOutcome(0)
    return RunOutcome(0) if all(code == 0 for code in exit_codes.values()) else None
