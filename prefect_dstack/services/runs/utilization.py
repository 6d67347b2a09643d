"""Ending a run that does not use its accelerators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prefect_dstack.backends.gpus import GPU_USE, read_use
from prefect_dstack.configurations import UtilizationPolicy
from prefect_dstack.controller.convergence import Log
from prefect_dstack.domain.utilization import Utilization
from prefect_dstack.errors import HostError
from prefect_dstack.hosts.machine import CommandMachine
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.runs.nodes import Node

__all__ = ["AcceleratorUse"]

INTERVAL = 10.0
"""Seconds between two looks at the accelerators."""


class AcceleratorUse:
    """How much the nodes of a run use their accelerators.

    Args:
        policy: How much they must.
        infrastructure: Where the nodes run.
        log: Told where it cannot be found out.
        clock: Seconds, by a clock that only goes forward.
    """

    def __init__(
        self,
        policy: UtilizationPolicy,
        infrastructure: Infrastructure,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy, self._infrastructure, self._log, self._clock = policy, infrastructure, log, clock
        self._use = Utilization(policy.min_gpu_utilization, float(policy.time_window))
        self._looked = float("-inf")
        self._told = False

    def look(self, nodes: Iterable[Node]) -> str | None:
        """Ask the drivers, unless they were asked just now.

        Args:
            nodes: The nodes of the run.

        Returns:
            Why the run is to end; None if it may go on.
        """
        now = self._clock()
        if now - self._looked < INTERVAL:
            return None
        self._looked = now
        used: dict[str, int] = {}
        for node in nodes:
            used |= self._of(node)
        self._use.note(used, now)
        idle = self._use.idle()
        if idle is None:
            return None
        policy = self._policy
        return (
            f"{idle} was used less than {policy.min_gpu_utilization} % for {policy.time_window} s "
            "(utilization_policy)"
        )

    def _of(self, node: Node) -> dict[str, int]:
        """Return how much a node uses each of its accelerators, by a name for people."""
        if node.instance is None or node.exit_code is not None:
            return {}
        try:
            machine = self._infrastructure.machine(node.instance)
            if not isinstance(machine, CommandMachine):
                return {}
            answer = machine.run(["sh", "-c", GPU_USE])
        except HostError:
            return {}
        if answer.exit_code != 0 and not self._told:
            self._told = True
            reason = answer.stderr.decode(errors="replace").strip()
            self._log.warning("%s: cannot say how much its GPUs are used: %s", node.instance.name, reason)
        used = read_use(answer.stdout.decode(errors="replace").splitlines())
        if used and node.replica is not None and node.replica.runtime == "process":
            # It sees all GPUs of this machine, and need not use each of them.
            return {f"every GPU of {node.instance.name}": max(used.values())}
        devices = node.instance.gpu_devices or tuple(used)  # a machine of its own gives all of them
        return {f"GPU {it} of {node.stamp.name}": used[it] for it in devices if it in used}
