"""Which machines satisfy what was asked: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prefect_dstack.backends.aws.catalog import InstanceType
from prefect_dstack.backends.base import Accelerator, Offer
from prefect_dstack.configurations.messages import nearest, one_of
from prefect_dstack.configurations.resources import Gpu as WantedGpu
from prefect_dstack.domain.workload import Requirements

__all__ = ["BACKEND", "Market", "explain", "gpus_suffice", "rank", "select"]

BACKEND = "aws"

# A Docker Engine and a small server do not fit in less.
LEAST_MEMORY_GB = 1.0

# The most that EBS has: https://docs.aws.amazon.com/ebs/latest/userguide/volume_constraints.html
MOST_DISK_GB = 65_536

# GPUs that the driver in the Deep Learning base image serves, with their CUDA compute capability.
COMPUTE_CAPABILITY = {
    "A100": (8, 0),
    "A10G": (8, 6),
    "B200": (10, 0),
    "B300": (10, 3),
    "H100": (9, 0),
    "H200": (9, 0),
    "L4": (8, 9),
    "L40S": (8, 9),
    "RTX PRO 4500": (12, 0),
    "RTX PRO 6000": (12, 0),
    "T4": (7, 5),
    "T4g": (7, 5),
}


@dataclass(frozen=True)
class Market:
    """What a region has, and what it costs.

    Attributes:
        region: Its name.
        types: The kinds of machines.
        on_demand: US dollars an hour by type.
        spot: US dollars an hour by type and zone.
    """

    region: str
    types: Sequence[InstanceType]
    on_demand: Mapping[str, float] = field(default_factory=dict)
    spot: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def select(
    markets: Sequence[Market],
    wanted: Requirements,
    *,
    zones: Sequence[str] = (),
    any_gpu: bool = False,
    disk_gb: float = 100,
) -> list[Offer]:
    """Choose the machines that satisfy what was asked.

    Args:
        markets: The regions, the preferred first.
        wanted: What was asked.
        zones: The only zones to use; empty: all.
        any_gpu: Whether there is an image with a driver for any GPU.
        disk_gb: Size of the root disk where none was asked.

    Returns:
        Offers, cheapest first; those whose price is unknown last. A `max_price` leaves only known prices.
    """
    offers = [
        offer
        for market in markets
        for offer in _of_market(market, wanted, zones=zones, any_gpu=any_gpu, disk_gb=disk_gb)
        if wanted.max_price is None or (offer.price is not None and offer.price <= wanted.max_price)
    ]
    return rank(offers, [market.region for market in markets])


def rank(offers: Iterable[Offer], regions: Sequence[str]) -> list[Offer]:
    """Sort offers: cheapest first, unknown prices last, then spot, the smaller machine, the preferred region.

    Args:
        offers: In any order.
        regions: The preferred first.

    Returns:
        The same offers.
    """

    def key(offer: Offer) -> tuple[object, ...]:
        return (
            offer.price is None,
            offer.price or 0.0,
            not offer.spot,
            sum(gpu.count * gpu.memory_gb for gpu in offer.gpus),
            offer.cpus,
            offer.memory_gb,
            regions.index(offer.region) if offer.region in regions else len(regions),
            offer.instance_type,
        )

    return sorted(offers, key=key)


def explain(markets: Sequence[Market], wanted: Requirements, *, any_gpu: bool = False) -> str:
    """Say why nothing was found, and what comes closest.

    Args:
        markets: The regions.
        wanted: What was asked.
        any_gpu: As for `select`.

    Returns:
        One line.
    """
    regions = [market.region for market in markets if not wanted.regions or market.region in wanted.regions]
    if not regions:
        return (
            f"none of the regions asked for ({', '.join(wanted.regions or ())}) is among those of the "
            f"backend ({', '.join(market.region for market in markets)})"
        )
    where = ", ".join(regions)
    kinds = [kind for market in markets if market.region in regions for kind in market.types]
    known = {kind.name for kind in kinds}
    if wanted.instance_types and not known & set(wanted.instance_types):
        hint = next(filter(None, (nearest(name, sorted(known)) for name in wanted.instance_types)), None)
        return f"{where}: there is no usable instance type {one_of(wanted.instance_types)}" + (
            f"; did you mean {hint}?" if hint else ""
        )
    zones = sorted({zone for kind in kinds for zone in kind.zones})
    if wanted.availability_zones and not set(zones) & set(wanted.availability_zones):
        return (
            f"{where}: there is no availability zone {one_of(wanted.availability_zones)}; "
            f"there are: {', '.join(zones)}"
        )
    if _disk(wanted, 0) > MOST_DISK_GB:
        return f"a disk of {_disk(wanted, 0):,.0f} GB is more than EBS has, which is {MOST_DISK_GB:,} GB"
    anywhere = wanted.model_copy(update={"availability_zones": None})
    candidates = rank(
        [
            offer
            for market in markets
            for offer in _of_market(market, anywhere, zones=(), any_gpu=any_gpu, disk_gb=0)
        ],
        regions,
    )
    if not candidates:
        return f"{where}: none of {len(known)} instance types has the resources asked for"
    unknown = sum(1 for offer in candidates if offer.price is None)
    first = candidates[0]
    if first.price is None:
        return (
            f"{where}: max_price cannot be checked: the prices of all {unknown} matching offers are unknown"
        )
    if wanted.max_price is not None and first.price > wanted.max_price:
        return (
            f"{where}: the cheapest of {len(candidates)} matching offers, {'spot ' if first.spot else ''}"
            f"{first.instance_type}, costs ${first.price:.4g} an hour, more than the max_price of "
            f"${wanted.max_price:.4g}" + (f"; the prices of {unknown} are unknown" if unknown else "")
        )
    return f"{where}: no availability zone that may be used has a matching instance type"


def _of_market(
    market: Market, wanted: Requirements, *, zones: Sequence[str], any_gpu: bool, disk_gb: float
) -> Iterator[Offer]:
    if wanted.regions and market.region not in wanted.regions:
        return
    if _disk(wanted, disk_gb) > MOST_DISK_GB:
        return
    policy = wanted.spot_policy or "on-demand"
    for kind in market.types:
        if wanted.instance_types and kind.name not in wanted.instance_types:
            continue
        if not _suffices(kind, wanted, any_gpu=any_gpu):
            continue
        allowed = [
            zone
            for zone in kind.zones
            if (not zones or zone in zones)
            and (not wanted.availability_zones or zone in wanted.availability_zones)
        ]
        if not allowed:
            continue
        common = {
            "backend": BACKEND,
            "instance_type": kind.name,
            "region": market.region,
            "cpus": kind.cpus,
            "memory_gb": kind.memory_gb,
            "gpus": kind.gpus,
            "disk_gb": _disk(wanted, disk_gb),
        }
        if policy in ("spot", "auto") and kind.spot:
            by_zone = market.spot.get(kind.name, {})
            cheapest_first = sorted(allowed, key=lambda zone: (by_zone.get(zone, float("inf")), zone))
            price = by_zone.get(cheapest_first[0])
            yield Offer(**common, zones=tuple(cheapest_first), price=price, spot=True)
        if policy in ("on-demand", "auto"):
            yield Offer(**common, zones=tuple(allowed), price=market.on_demand.get(kind.name))


def _suffices(kind: InstanceType, wanted: Requirements, *, any_gpu: bool) -> bool:
    resources = wanted.resources
    cpu = resources.cpu
    # Most container images are for x86 only; arm must be asked for, by architecture or by type.
    arm = kind.architecture == "arm64"
    if arm != (cpu is not None and cpu.arch == "arm") and not (
        wanted.instance_types and (cpu is None or cpu.arch is None)
    ):
        return False
    if cpu is not None and cpu.count is not None and not cpu.count.holds(kind.cpus):
        return False
    if resources.memory is not None and not resources.memory.holds(kind.memory_gb):
        return False
    if resources.memory is None and kind.memory_gb < LEAST_MEMORY_GB:
        return False
    if resources.gpu is None:
        return not kind.gpus or bool(wanted.instance_types)
    return gpus_suffice(kind.gpus, resources.gpu, any_gpu=any_gpu)


def gpus_suffice(gpus: Sequence[Accelerator], wanted: WantedGpu, *, any_gpu: bool = False) -> bool:
    """Tell whether a machine has the accelerators asked for.

    Args:
        gpus: What it has.
        wanted: What was asked.
        any_gpu: Whether GPUs that the standard image has no driver for will do.

    Returns:
        Whether it has them: the machine has no other GPU to give, so counts are those of the whole machine.
    """
    count = wanted.count
    if count is not None and count.max == 0:
        return not gpus
    if not gpus:
        return False
    names = {_plain(name) for name in wanted.name or ()}
    for gpu in gpus:
        capability = COMPUTE_CAPABILITY.get(gpu.name)
        if capability is None and not any_gpu:
            return False
        if names and _plain(gpu.name) not in names:
            return False
        if wanted.vendor is not None and gpu.vendor != wanted.vendor:
            return False
        if wanted.memory is not None and not wanted.memory.holds(gpu.memory_gb):
            return False
        if wanted.compute_capability is not None and (capability or (0, 0)) < wanted.compute_capability:
            return False
    if count is None:
        least: bool = sum(gpu.count for gpu in gpus) >= 1
    else:
        least = count.holds(sum(gpu.count for gpu in gpus))
    total = sum(gpu.count * gpu.memory_gb for gpu in gpus)
    return least and (wanted.total_memory is None or wanted.total_memory.holds(total))


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _disk(wanted: Requirements, disk_gb: float) -> float:
    if wanted.resources.disk is None:
        return disk_gb
    size = wanted.resources.disk.size
    if size.min is not None:
        return float(size.min)
    return min(disk_gb, float(size.max)) if size.max is not None else disk_gb
