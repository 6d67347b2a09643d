"""Whether an offer has what a replica needs."""

from __future__ import annotations

import re

from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.configurations.resources import Gpu as GpuRequirement
from prefect_dstack.configurations.resources import Resources

__all__ = ["shortfalls"]


def shortfalls(offer: Offer, resources: Resources | None) -> list[str]:
    """Say what an offer lacks.

    Args:
        offer: A machine, or what is free of one.
        resources: What a replica needs; None: anything will do.

    Returns:
        One phrase for each thing that is not enough, such as `cpu: 4 asked, 2 there`; empty if it fits.
    """
    if resources is None:
        return []
    lacking = []
    cpus = resources.cpu.count.min if resources.cpu and resources.cpu.count else None
    if cpus is not None and offer.cpus < cpus:
        lacking.append(f"cpu: {cpus} asked, {offer.cpus:g} there")
    memory = resources.memory.min if resources.memory else None
    if memory is not None and offer.memory_gb < memory:
        lacking.append(f"memory: {memory:g} GB asked, {offer.memory_gb:.1f} GB there")
    disk = resources.disk.size.min if resources.disk else None
    if disk is not None and offer.disk_gb is not None and offer.disk_gb < disk:
        lacking.append(f"disk: {disk:g} GB asked, {offer.disk_gb:.1f} GB there")
    if resources.gpu is not None and not any(_suits(gpu, resources.gpu) for gpu in [*offer.gpus, None]):
        there = ", ".join(f"{gpu.name}:{gpu.memory_gb:.0f}GB:{gpu.count}" for gpu in offer.gpus) or "none"
        lacking.append(f"gpu: {_asked(resources.gpu)} asked, {there} there")
    return lacking


def _suits(gpu: Accelerator | None, wanted: GpuRequirement) -> bool:
    least = 1 if wanted.count is None or wanted.count.min is None else wanted.count.min
    if gpu is None:
        return least == 0
    memory = wanted.memory
    total = wanted.total_memory
    capability = wanted.compute_capability
    return (
        gpu.count >= least
        and (capability is None or (gpu.compute_capability or (0, 0)) >= capability)
        and (wanted.vendor is None or gpu.vendor == wanted.vendor)
        and (wanted.name is None or any(_same_model(name, gpu.name) for name in wanted.name))
        and (memory is None or memory.min is None or gpu.memory_gb >= memory.min * 0.95)
        and (memory is None or memory.max is None or gpu.memory_gb <= memory.max)
        and (total is None or total.min is None or gpu.memory_gb * gpu.count >= total.min * 0.95)
    )


def _same_model(asked: str, there: str) -> bool:
    """Find `RTX4090` in `NVIDIA GeForce RTX 4090`: some words in a row of it, written together."""
    words = re.split(r"[\s_-]+", there.lower())
    sought = re.sub(r"[\s_-]+", "", asked.lower())
    return any(
        "".join(words[first:last]) == sought
        for first in range(len(words))
        for last in range(first + 1, len(words) + 1)
    )


def _asked(wanted: GpuRequirement) -> str:
    parts = [
        wanted.vendor,
        ",".join(wanted.name) if wanted.name else None,
        None if wanted.memory is None else f"{wanted.memory.min or 0:g}GB",
        None if wanted.total_memory is None else f"{wanted.total_memory.min or 0:g}GB in all",
        None if wanted.count is None else str(wanted.count.min or 0),
    ]
    asked = ":".join(part for part in parts if part) or "1"
    if wanted.compute_capability is not None:
        asked += " of compute capability {}.{}".format(*wanted.compute_capability)
    return asked
