"""The nodes of a task or a development environment: placed, started, looked at, and removed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.bundles import Bundle
from prefect_dstack.configurations import (
    DevEnvironmentConfiguration,
    NodeFacts,
    resolve_commands,
    resolve_environment,
    resolve_registry_auth,
)
from prefect_dstack.controller.convergence import Log
from prefect_dstack.controller.goal import DEFAULT_GRACE
from prefect_dstack.domain.dev_environments import environment_commands
from prefect_dstack.domain.placement import on_one_network, place
from prefect_dstack.domain.run_record import RunRecord
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.task_nodes import NodePlan, node_facts, plan_nodes
from prefect_dstack.domain.workload import Requirements, WorkloadSpec, requirements_of, workload_spec
from prefect_dstack.errors import HostError, NotFoundError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus
from prefect_dstack.services.images import default_image
from prefect_dstack.services.runs.names import Runnable
from prefect_dstack.tasks.replicas import (
    launch_replica,
    provision_instance,
    remove_replica,
    terminate_instance,
)

__all__ = ["Node", "Nodes"]

# A host may be silent for so long before its node counts as lost.
SILENCE = 60.0

_T = TypeVar("_T")


@dataclass
class Node:
    """One node on its way.

    Attributes:
        plan: What it is in its run.
        stamp: What it is found by.
        instance: Where it runs; None: it has no machine yet.
        replica: What runs there; None: it has not been started yet.
        exit_code: What it ended with; None: it has not.
        gone: Whether it was removed by somebody else, or its machine is.
        out_of_memory: Whether it ended because it had used up its memory.
        silent_since: When its machine was found not to answer, in seconds of the monotonic clock.
        lines: What reads its output.
    """

    plan: NodePlan
    stamp: Stamp
    instance: Instance | None = None
    replica: Replica | None = None
    exit_code: int | None = None
    gone: bool = False
    out_of_memory: bool = False
    silent_since: float | None = None
    lines: threading.Thread | None = field(default=None, repr=False)

    @property
    def found(self) -> FoundReplica | None:
        """The node as something that was found on its machine; None before it is started."""
        if self.instance is None or self.replica is None:
            return None
        state = "running" if self.exit_code is None else "exited"
        return FoundReplica(self.instance, self.replica, ReplicaStatus(state=state))


class Nodes:
    """All nodes of one run.

    Args:
        configuration: The task or the development environment.
        record: The record of the run.
        infrastructure: Where they run.
        flow_run: Stamped on what is created.
        log: Told of machines that are silent.
        bundle: The files that they bring along; None: they bring none.
    """

    def __init__(
        self,
        configuration: Runnable,
        record: RunRecord,
        infrastructure: Infrastructure,
        flow_run: str,
        log: Log,
        bundle: Bundle | None,
    ) -> None:
        self.configuration, self.infrastructure = configuration, infrastructure
        self.log, self.bundle = log, bundle
        self.all = [
            Node(
                plan,
                Stamp(service=record.name, revision=record.number, replica=plan.rank, flow_run=flow_run),
            )
            for plan in plan_nodes(configuration)
        ]

    def provision(self) -> None:
        """Get a machine for each node that has none.

        Raises:
            CapacityError: If there is none for one of them.
            NoOfferError: If no machine has what one of them asks for.
        """
        waiting = [node for node in self.all if node.instance is None]
        groups: dict[int, list[Node]] = {}
        for node in waiting:
            groups.setdefault(node.plan.group or 0, []).append(node)
        offers = {group: self.infrastructure.offers(self._needs(nodes[0])) for group, nodes in groups.items()}
        if offers and len(self.all) > 1:
            counts = {group: len(nodes) for group, nodes in groups.items()}
            used = {node.instance.network or "" for node in self.all if node.instance is not None}
            name = self.configuration.name or "the nodes"
            # Hosts without a private network reach each other by their names.
            offers = on_one_network(name, offers, counts, used=used, private=False)
        chosen: list[tuple[Node, Sequence[Offer]]] = []
        for group, nodes in groups.items():
            chosen += zip(nodes, place(offers[group], len(nodes)), strict=True)

        def provision(pair: tuple[Node, Sequence[Offer]]) -> None:
            node, offers = pair
            needs = self._needs(node)
            node.instance = provision_instance(self.infrastructure, offers, node.stamp, needs)

        _at_once(provision, chosen)

    def launch(self, ranks: Collection[int]) -> None:
        """Start the nodes that have these ranks, at once.

        Args:
            ranks: Their ranks; each has a machine.
        """
        _at_once(self._launch, [node for node in self.all if node.plan.rank in ranks])

    def look(self) -> None:
        """Look how each node that has not ended is."""
        for node in self.all:
            self._look_at(node)

    def bring_back(self, artifacts: Mapping[str, Path]) -> list[str]:
        """Copy files out of the master node.

        Args:
            artifacts: Local paths by those in the node.

        Returns:
            The local paths that were written.
        """
        node = self.all[0]
        if node.instance is None or node.replica is None:
            return []
        runtime = self.infrastructure.runtime(node.instance, node.replica.runtime)
        machine = self.infrastructure.machine(node.instance)
        copied = []
        for path, target in artifacts.items():
            runtime.copy_back(machine, node.replica, path, target)
            self.log.info("%s: copied %s to %s", node.stamp.service, path, target)
            copied.append(str(target))
        return copied

    def remove(self) -> None:
        """Remove every node, and give its machine back."""
        for node in self.all:
            if node.instance is None:
                continue
            if (found := node.found) is not None:
                remove_replica(self.infrastructure, found, DEFAULT_GRACE)
            if self.infrastructure.is_owned(node.instance):
                terminate_instance(self.infrastructure, node.instance)

    def _launch(self, node: Node) -> None:
        if node.instance is None:
            raise NotFoundError(f"{node.stamp.name}: has no machine")
        launch = Launch(stamp=node.stamp, spec=self._spec(node, self._addresses()))
        node.replica = launch_replica(self.infrastructure, node.instance, launch)

    def _addresses(self) -> list[str]:
        return [
            (node.instance.private_address or node.instance.address) if node.instance else "127.0.0.1"
            for node in self.all
        ]

    def _needs(self, node: Node) -> Requirements:
        configuration = self.configuration.model_copy(update={"resources": node.plan.resources})
        return requirements_of(configuration, interconnected=len(self.all) > 1)

    def _spec(self, node: Node, addresses: Sequence[str]) -> WorkloadSpec:
        """Return what a node runs, now that the addresses of all are known."""
        plan, configuration, lookup = node.plan, self.configuration, self.infrastructure.sources.secret
        facts = self._facts(node, addresses)
        spec = workload_spec(
            configuration.model_copy(update={"resources": plan.resources}),
            port=None,
            commands=self._commands(facts, plan),
            environment=resolve_environment(configuration, lookup, os.environ, facts),
            registry=resolve_registry_auth(configuration, lookup, os.environ),
            default_image=default_image(configuration),
            bundle="" if self.bundle is None else self.bundle.digest,
        )
        gpus = [len(it.instance.gpu_devices) if it.instance else 0 for it in self.all]
        return spec.model_copy(
            update={
                "ports": tuple(port.container_port for port in plan.ports),
                "restart": False,
                "host_network": len(self.all) > 1 and spec.runtime == "docker",
                "facts": node_facts(plan.rank, addresses, gpus),
            }
        )

    def _commands(self, facts: NodeFacts, plan: NodePlan) -> tuple[str, ...]:
        if isinstance(self.configuration, DevEnvironmentConfiguration):
            return environment_commands(self.configuration)
        return resolve_commands(self.configuration, facts, plan.group)

    def _facts(self, node: Node, addresses: Sequence[str]) -> NodeFacts:
        groups: dict[int, list[str]] = {}
        for it, address in zip(self.all, addresses, strict=True):
            groups.setdefault(it.plan.group or 0, []).append(address)
        return NodeFacts(
            node_rank=node.plan.rank,
            job_num=node.plan.rank,
            nodes_num=len(self.all),
            master_node_ip=addresses[0],
            addresses=tuple(tuple(groups[number]) for number in sorted(groups)),
        )

    def _look_at(self, node: Node) -> None:
        if node.exit_code is not None or node.instance is None or node.replica is None:
            return
        try:
            runtime = self.infrastructure.runtime(node.instance, node.replica.runtime)
            status = runtime.status(self.infrastructure.machine(node.instance), node.replica)
        except HostError as error:
            node.silent_since = node.silent_since or time.monotonic()
            if time.monotonic() - node.silent_since > SILENCE:
                self.log.error("%s: its machine is silent: %s", node.stamp.name, error)
                node.gone = True
            return
        node.silent_since = None
        if status.state == "gone":
            node.gone = True
        elif status.state == "exited":
            node.exit_code = 137 if status.out_of_memory else status.exit_code
            node.out_of_memory = status.out_of_memory
            # What supervised it was killed with it: nobody knows whether it has succeeded.
            node.gone = node.exit_code is None


def _at_once(action: Callable[[_T], None], items: Sequence[_T]) -> None:
    """Do something for several nodes at once; the first failure is raised when all have ended."""
    with ThreadPoolExecutor(max(1, len(items))) as pool:
        done = [pool.submit(copy_context().run, action, item) for item in items]
    failures = [error for future in done if (error := future.exception()) is not None]
    if failures:
        raise max(failures, key=lambda error: int(getattr(error, "exit_code", 0)))
