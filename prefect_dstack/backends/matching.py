"""Whether an offer will do for what was asked: the same rules for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.backends.gpus import compute_capability, data_sheet_gb, is_model
from prefect_dstack.configurations.resources import Gpu
from prefect_dstack.domain.workload import Requirements

__all__ = ["PLACEMENT", "Refusal", "gpus_given", "misplaced", "refusals", "shortfalls"]

# Drivers and clouds say a little less than the data sheet does.
_ENOUGH_GPU_MEMORY = 0.95
# What is left of a machine after some subtractions is not exact.
_ROUNDING = 1e-6


class Refusal(NamedTuple):
    """Why an offer will not do.

    Attributes:
        key: What the user wrote that it does not satisfy, such as `regions`.
        reason: What is wrong, and what to do about it.
    """

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def refusals(requirements: Requirements, offer: Offer) -> list[Refusal]:
    """Return why an offer will not do, key by key.

    An offer with `slots` is a machine that is shared: a replica takes a part of it, so there may be more than
    was asked. Any other is a machine of the replica's own, which must be no larger than was asked either.

    Args:
        requirements: What was asked.
        offer: A machine, or what is left of one.

    Returns:
        The reasons; none if it will do.

    Example:
        >>> host = Offer(
        ...     backend="ssh", fleet="lab", instance_type="host-1", cpus=8, memory_gb=32, price=0, slots=1
        ... )
        >>> [str(refusal) for refusal in refusals(Requirements(spot_policy="spot"), host)]
        ['spot_policy: hosts of fleets are no spot instances; remove it']
        >>> refusals(Requirements(max_price=0.5), host)
        []
    """
    return [*misplaced(requirements, offer), *shortfalls(requirements, offer)]


def misplaced(requirements: Requirements, offer: Offer) -> list[Refusal]:
    """Return why an offer will not do, whatever resources it has: where it is, what it is and what it costs.

    Args:
        requirements: What was asked.
        offer: A machine, or what is left of one.

    Returns:
        The reasons, one for each key of `PLACEMENT` at most.
    """
    reasons = ((key, reason_of(requirements, offer)) for key, reason_of in PLACEMENT.items())
    return [Refusal(key, reason) for key, reason in reasons if reason is not None]


def shortfalls(requirements: Requirements, offer: Offer) -> list[Refusal]:
    """Return which resources an offer lacks, or has too much of.

    Args:
        requirements: What was asked.
        offer: A machine, or what is left of one.

    Returns:
        The reasons, such as `cpu: 4.. asked, 2 there`.
    """
    return list(_shortfalls(requirements, offer))


def gpus_given(requirements: Requirements, offer: Offer) -> tuple[Accelerator, ...] | None:
    """Return the accelerators that a replica would get of an offer.

    Args:
        requirements: What was asked.
        offer: A machine, or what is left of one.

    Returns:
        Of a machine of its own, all; of a shared one, as few and as small ones as satisfy what was asked, all
        of one kind. None if what is there does not satisfy it.
    """
    if requirements.resources.gpu is None:
        return offer.gpus if offer.slots is None else ()
    choices = iter([offer.gpus]) if offer.slots is None else _shares(offer.gpus)
    return next((given for given in choices if _suffice(given, requirements)), None)


def _backends(requirements: Requirements, offer: Offer) -> str | None:
    asked = requirements.backends
    return _none_of(asked, offer.backend) if asked else None


def _fleets(requirements: Requirements, offer: Offer) -> str | None:
    asked = requirements.fleets
    if not asked:
        return None
    if not offer.fleet:
        return f"machines of the backend {offer.backend} are in no fleet; remove it"
    # Written with the project in front, as dstack allows it.
    return _none_of([name.rpartition("/")[2] for name in asked], offer.fleet)


def _instances(requirements: Requirements, offer: Offer) -> str | None:
    asked = requirements.instances
    if asked and not offer.instances:
        return f"machines of the backend {offer.backend} are in no fleet; remove it"
    return _none_of(asked, *offer.instances) if asked else None


def _regions(requirements: Requirements, offer: Offer) -> str | None:
    asked = requirements.regions
    if asked and not offer.region:
        return f"{_has(offer)} no region; remove it"
    return _none_of(asked, offer.region) if asked else None


def _availability_zones(requirements: Requirements, offer: Offer) -> str | None:
    asked = requirements.availability_zones
    if asked and not offer.zones:
        return f"{_has(offer)} no availability zone; remove it"
    return _none_of(asked, *offer.zones) if asked else None


def _instance_types(requirements: Requirements, offer: Offer) -> str | None:
    asked = requirements.instance_types
    if asked and offer.slots is not None:
        return f"{_has(offer)} no instance type; remove it{', or name fleets instead' if offer.fleet else ''}"
    return _none_of(asked, offer.instance_type) if asked else None


def _spot_policy(requirements: Requirements, offer: Offer) -> str | None:
    policy = requirements.spot_policy or "on-demand"
    if policy == "on-demand" and offer.spot:
        return "on-demand asked, this is a spot instance"
    if policy == "spot" and not offer.spot:
        subject = "hosts of fleets are no spot instances" if offer.fleet else "it is no spot instance"
        return f"{subject}; remove it"
    return None


def _max_price(requirements: Requirements, offer: Offer) -> str | None:
    most = requirements.max_price
    if most is None or (offer.price is not None and offer.price <= most):
        return None
    costs = "the price is unknown" if offer.price is None else f"it costs ${offer.price:.4g}"
    return f"${most:.4g} an hour at most asked, {costs}"


PLACEMENT: Mapping[str, Callable[[Requirements, Offer], str | None]] = {
    "backends": _backends,
    "fleets": _fleets,
    "instances": _instances,
    "regions": _regions,
    "availability_zones": _availability_zones,
    "instance_types": _instance_types,
    "spot_policy": _spot_policy,
    "max_price": _max_price,
}
"""What says, for each key but `resources`, why an offer will not do; None: it will."""


def _none_of(asked: Sequence[str], *there: str) -> str | None:
    return None if set(asked) & set(there) else f"{', '.join(asked)} asked, this is {' or '.join(there)}"


def _has(offer: Offer) -> str:
    return "hosts of fleets have" if offer.fleet else "it has"


def _shortfalls(requirements: Requirements, offer: Offer) -> Iterator[Refusal]:
    resources = requirements.resources
    own = offer.slots is None
    cpu = resources.cpu
    wrong = []
    if cpu is not None and cpu.count is not None and not _enough(cpu.count, offer.cpus, own=own):
        wrong.append(f"{cpu.count} asked, {offer.cpus:g} there")
    if cpu is not None and cpu.arch not in (None, offer.architecture):
        wrong.append(f"{cpu.arch} asked, {offer.architecture or 'an unknown architecture'} there")
    if wrong:
        yield Refusal("cpu", ", ".join(wrong))
    memory = resources.memory
    if memory is not None and not _enough(memory, offer.memory_gb, own=own):
        yield Refusal("memory", f"{memory} asked, {offer.memory_gb:.1f} GB there")
    disk = resources.disk
    if disk is not None and offer.disk_gb is not None and not _enough(disk.size, offer.disk_gb, own=own):
        yield Refusal("disk", f"{disk.size} asked, {offer.disk_gb:.1f} GB there")
    if resources.gpu is not None and gpus_given(requirements, offer) is None:
        there = ", ".join(f"{gpu.name}:{gpu.memory_gb:.0f}GB:{gpu.count}" for gpu in offer.gpus) or "none"
        yield Refusal("gpu", f"{_asked(resources.gpu)} asked, {there} there")


def _enough(wanted: Any, there: float, *, own: bool) -> bool:
    return wanted.holds(there) if own else wanted.min is None or there + _ROUNDING >= wanted.min


def _shares(gpus: Sequence[Accelerator]) -> Iterator[tuple[Accelerator, ...]]:
    yield ()
    for kind in sorted(gpus, key=lambda gpu: (gpu.memory_gb, gpu.count)):
        for count in range(1, kind.count + 1):
            yield (kind.model_copy(update={"count": count}),)


def _suffice(given: Sequence[Accelerator], requirements: Requirements) -> bool:
    wanted = requirements.resources.gpu
    if wanted is None:
        return True
    count = sum(gpu.count for gpu in given)
    most = wanted.count.max if wanted.count else None
    total = sum(gpu.count * data_sheet_gb(gpu.name, gpu.memory_gb) for gpu in given)
    return (
        len(given) <= 1
        and count >= requirements.gpu_count
        and (most is None or count <= most)
        and (wanted.total_memory is None or _holds_memory(wanted.total_memory, total))
        and all(_suits(gpu, wanted) for gpu in given)
    )


def _suits(gpu: Accelerator, wanted: Gpu) -> bool:
    least = wanted.compute_capability
    return (
        (wanted.vendor is None or gpu.vendor == wanted.vendor)
        and (wanted.name is None or any(is_model(name, gpu.name) for name in wanted.name))
        and (wanted.memory is None or _holds_memory(wanted.memory, data_sheet_gb(gpu.name, gpu.memory_gb)))
        and (least is None or (compute_capability(gpu) or (0, 0)) >= least)
    )


def _holds_memory(wanted: Any, memory_gb: float) -> bool:
    low, high = wanted.min, wanted.max
    return (low is None or memory_gb >= low * _ENOUGH_GPU_MEMORY) and (high is None or memory_gb <= high)


def _asked(wanted: Gpu) -> str:
    parts = (
        wanted.vendor,
        ",".join(wanted.name) if wanted.name else None,
        wanted.memory and str(wanted.memory),
        wanted.total_memory and f"{wanted.total_memory} in all",
        wanted.count and str(wanted.count),
    )
    asked = ":".join(part for part in parts if part) or "1"
    if wanted.compute_capability is not None:
        asked += " of compute capability {}.{}".format(*wanted.compute_capability)
    return asked
