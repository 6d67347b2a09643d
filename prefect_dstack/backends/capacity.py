"""What is left of a host, and whether a replica fits in: pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from prefect_dstack.backends.base import Offer
from prefect_dstack.backends.claims import Claim
from prefect_dstack.backends.gpus import GpuDevice, grouped, picked
from prefect_dstack.backends.inspection import HostInventory
from prefect_dstack.backends.matching import Refusal, gpus_given, shortfalls
from prefect_dstack.domain.workload import Requirements

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
        """Return what is left, as one offer; `slots` is not counted yet."""
        cpus = self.inventory.cpus - sum(claim.cpus for claim in self.claims)
        memory = self.inventory.memory_gb - sum(claim.memory_gb for claim in self.claims)
        if self.blocks is not None:
            share = self.free_blocks / self.blocks
            cpus, memory = self.inventory.cpus * share, self.inventory.memory_gb * share
        return Offer(
            backend="ssh",
            instance_type=self.name,
            architecture=self.inventory.architecture,
            cpus=max(cpus, 0.0),
            memory_gb=max(memory, 0.0),
            gpus=grouped(self._gpus_to_give),
            disk_gb=self.inventory.free_disk_gb,
            price=0.0,
            slots=0,
        )

    def offer(self, requirements: Requirements) -> tuple[Offer, list[Refusal]]:
        """Return what is left, and how many replicas fit into it.

        Args:
            requirements: What one replica needs.

        Returns:
            The offer, and why not even one fits; no reason if at least one does.
        """
        free = self.free()
        lacking = shortfalls(requirements, free)
        if not lacking and self.blocks is not None and self.free_blocks == 0:
            lacking.append(Refusal("blocks", f"all {self.blocks} are taken"))
        if lacking:
            return free, lacking
        slots = self._slots(requirements, free)
        full = [] if slots else [Refusal("resources", "there is no room left")]
        return free.model_copy(update={"slots": slots}), full

    def claimable(self, requirements: Requirements) -> tuple[float, float, tuple[GpuDevice, ...]] | None:
        """Choose what one replica would get.

        Args:
            requirements: What it needs.

        Returns:
            CPUs, memory in GB, and the GPUs; None if it does not fit.
        """
        offer, lacking = self.offer(requirements)
        if lacking:
            return None
        gpus = picked(self._gpus_to_give, gpus_given(requirements, offer) or ())
        return requirements.cpus, requirements.memory_gb, gpus

    @property
    def _gpus_to_give(self) -> Sequence[GpuDevice]:
        if self.blocks is None:
            return self.free_gpus
        return self.free_gpus[: round(len(self.inventory.gpus) * self.free_blocks / self.blocks)]

    def _slots(self, requirements: Requirements, free: Offer) -> int:
        cpus, memory = requirements.cpus, requirements.memory_gb
        gpus = sum(gpu.count for gpu in gpus_given(requirements, free) or ())
        if self.blocks is not None:
            return self.free_blocks // self._blocks_for(cpus, memory, gpus)
        rooms = [UNLIMITED]
        if cpus:
            rooms.append(math.floor(free.cpus / cpus + ROUNDING))
        if memory:
            rooms.append(math.floor(free.memory_gb / memory + ROUNDING))
        if gpus:
            rooms.append(sum(self._slots_of(requirements, free, number) for number in range(len(free.gpus))))
        return min(rooms)

    def _slots_of(self, requirements: Requirements, free: Offer, number: int) -> int:
        """Return how many replicas one kind of GPU is enough for."""
        kind = free.gpus[number]
        given = gpus_given(requirements, free.model_copy(update={"gpus": (kind,)}))
        return kind.count // given[0].count if given else 0

    def _blocks_for(self, cpus: float, memory_gb: float, gpus: int) -> int:
        blocks = self.blocks or 1
        parts = [
            _share(cpus, self.inventory.cpus),
            _share(memory_gb, self.inventory.memory_gb),
            _share(gpus, len(self.inventory.gpus)),
        ]
        return max(1, math.ceil(max(parts) * blocks - ROUNDING))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
