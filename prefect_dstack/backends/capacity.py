"""What is left of a host, and whether a replica fits in: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.backends.claims import Claim
from prefect_dstack.backends.inspection import GpuDevice, HostInventory
from prefect_dstack.backends.matching import shortfalls
from prefect_dstack.configurations import Resources

__all__ = ["HostCapacity"]

# Replicas that ask for nothing are limited by nothing that we can count.
UNLIMITED = 10_000
# Shares are fractions of whole machines: what is left of them after some subtractions is not exact.
ROUNDING = 1e-6


class HostCapacity:
    """A host, and what replicas have been promised of it.

    Args:
        name: The host's name.
        inventory: What it has.
        claims: What is promised.
        blocks: Into how many equal parts it is split; None: it is shared by what replicas ask for.
    """

    def __init__(
        self,
        name: str,
        inventory: HostInventory,
        claims: Sequence[Claim],
        blocks: int | Literal["auto"] | None = None,
    ) -> None:
        self.name = name
        self.inventory = inventory
        self.claims = tuple(claims)
        if blocks == "auto":
            blocks = len(inventory.gpus) or inventory.cpus
        self.blocks = blocks

    @property
    def free_gpus(self) -> tuple[GpuDevice, ...]:
        """The GPUs that are nobody's."""
        taken = {device for claim in self.claims for device in claim.gpu_devices}
        return tuple(gpu for gpu in self.inventory.gpus if gpu.id not in taken)

    @property
    def used(self) -> float:
        """How much of the host is promised, from 0 to 1: of that resource of which most is."""
        parts = [
            _share(sum(claim.cpus for claim in self.claims), self.inventory.cpus),
            _share(sum(claim.memory_gb for claim in self.claims), self.inventory.memory_gb),
            _share(len(self.inventory.gpus) - len(self.free_gpus), len(self.inventory.gpus)),
        ]
        if self.blocks is not None:
            parts.append((self.blocks - self.free_blocks) / self.blocks)
        return max(parts)

    @property
    def free_blocks(self) -> int:
        """How many of its parts are nobody's."""
        if self.blocks is None:
            return 0
        taken = sum(
            self._blocks_for(claim.cpus, claim.memory_gb, len(claim.gpu_devices)) for claim in self.claims
        )
        return max(self.blocks - taken, 0)

    def free(self) -> Offer:
        """Say what is left, as one offer; `slots` is not counted yet."""
        cpus = self.inventory.cpus - sum(claim.cpus for claim in self.claims)
        memory = self.inventory.memory_gb - sum(claim.memory_gb for claim in self.claims)
        gpus: Sequence[GpuDevice] = self.free_gpus
        if self.blocks is not None:
            share = self.free_blocks / self.blocks
            cpus, memory = self.inventory.cpus * share, self.inventory.memory_gb * share
            gpus = gpus[: round(len(self.inventory.gpus) * share)]
        return Offer(
            backend="ssh",
            instance_type=self.name,
            cpus=max(cpus, 0.0),
            memory_gb=max(memory, 0.0),
            gpus=_grouped(gpus),
            disk_gb=self.inventory.free_disk_gb,
            price=0.0,
            slots=0,
        )

    def offer(self, resources: Resources) -> tuple[Offer, list[str]]:
        """Say what is left, and how many replicas fit into it.

        Args:
            resources: What one replica needs.

        Returns:
            The offer, and why not even one fits; no reason if at least one does.
        """
        free = self.free()
        lacking = shortfalls(free, resources)
        arch = resources.cpu.arch if resources.cpu else None
        if arch is not None and arch != self.inventory.architecture:
            lacking.append(f"cpu: {arch} asked, {self.inventory.architecture} there")
        if not lacking and self.blocks is not None and self.free_blocks == 0:
            lacking.append(f"blocks: all {self.blocks} are taken")
        if lacking:
            return free, lacking
        slots = self._slots(resources)
        return free.model_copy(update={"slots": slots}), [] if slots else ["there is no room left"]

    def claimable(self, resources: Resources) -> tuple[float, float, tuple[GpuDevice, ...]] | None:
        """Choose what one replica would get.

        Args:
            resources: What it needs.

        Returns:
            CPUs, memory in GB, and the GPUs; None if it does not fit.
        """
        if self.offer(resources)[1]:
            return None
        cpus, memory = _asked(resources)
        return cpus, memory, self._pick_gpus(resources)

    def _slots(self, resources: Resources) -> int:
        cpus, memory = _asked(resources)
        gpus = self._pick_gpus(resources)
        if self.blocks is not None:
            return self.free_blocks // self._blocks_for(cpus, memory, len(gpus))
        free = self.free()
        rooms = [UNLIMITED]
        if cpus:
            rooms.append(math.floor(free.cpus / cpus + ROUNDING))
        if memory:
            rooms.append(math.floor(free.memory_gb / memory + ROUNDING))
        if gpus:
            rooms.append(sum(len(group) // len(gpus) for group in self._suitable_gpus(resources)))
        return min(rooms)

    def _blocks_for(self, cpus: float, memory_gb: float, gpus: int) -> int:
        blocks = self.blocks or 1
        parts = [
            _share(cpus, self.inventory.cpus),
            _share(memory_gb, self.inventory.memory_gb),
            _share(gpus, len(self.inventory.gpus)),
        ]
        return max(1, math.ceil(max(parts) * blocks - ROUNDING))

    def _pick_gpus(self, resources: Resources) -> tuple[GpuDevice, ...]:
        groups = self._suitable_gpus(resources)
        if not groups:
            return ()
        # The smallest that suit: larger ones are left for who needs them.
        best = min(groups, key=lambda group: (group[0].memory_gb, len(group)))
        return tuple(best[: _gpus_asked(resources, best[0])])

    def _suitable_gpus(self, resources: Resources) -> list[list[GpuDevice]]:
        """Group the free GPUs by model, and keep the groups of which a replica could be served."""
        if resources.gpu is None:
            return []
        groups: dict[tuple[str, float], list[GpuDevice]] = {}
        for gpu in self.free_gpus:
            groups.setdefault((gpu.name, gpu.memory_gb), []).append(gpu)
        only_gpu = Resources(gpu=resources.gpu)
        return [
            group
            for group in groups.values()
            if 0 < _gpus_asked(resources, group[0]) <= len(group)
            and not shortfalls(self.free().model_copy(update={"gpus": _grouped(group)}), only_gpu)
        ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _grouped(devices: Sequence[GpuDevice]) -> tuple[Accelerator, ...]:
    groups: dict[tuple[str, float], int] = {}
    for device in devices:
        key = (device.name, device.memory_gb)
        groups[key] = groups.get(key, 0) + 1
    return tuple(
        Accelerator(name=name, memory_gb=memory, count=count) for (name, memory), count in groups.items()
    )


def _asked(resources: Resources) -> tuple[float, float]:
    cpus = resources.cpu.count.min if resources.cpu and resources.cpu.count else None
    memory = resources.memory.min if resources.memory else None
    return float(cpus or 0), float(memory or 0)


def _gpus_asked(resources: Resources, gpu: GpuDevice) -> int:
    wanted = resources.gpu
    if wanted is None:
        return 0
    count = 1 if wanted.count is None or wanted.count.min is None else wanted.count.min
    total = wanted.total_memory.min if wanted.total_memory else None
    if total:
        count = max(count, math.ceil(total * 0.95 / gpu.memory_gb))
    return count
