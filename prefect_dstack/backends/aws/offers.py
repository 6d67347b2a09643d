"""Which machines satisfy what was asked: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prefect_dstack.backends.aws.catalog import InstanceType
from prefect_dstack.backends.base import Offer
from prefect_dstack.backends.matching import Refusal, refusals
from prefect_dstack.configurations.messages import nearest, one_of
from prefect_dstack.domain.workload import Requirements

__all__ = ["BACKEND", "Market", "explain", "rank", "select"]

BACKEND = "aws"

# A Docker Engine and a small server do not fit in less.
LEAST_MEMORY_GB = 1.0

# The most that EBS has: https://docs.aws.amazon.com/ebs/latest/userguide/volume_constraints.html
MOST_DISK_GB = 65_536

# The GPUs that the driver in the Deep Learning base image serves.
DRIVEN = frozenset(
    {
        "A100",
        "A10G",
        "B200",
        "B300",
        "H100",
        "H200",
        "L4",
        "L40S",
        "RTX PRO 4500",
        "RTX PRO 6000",
        "T4",
        "T4g",
    }
)

# Keys that leave out offers which have what was asked for.
HARD_TO_GET = ("availability_zones", "max_price")

# What EC2 calls the architectures.
ARCHITECTURES = {"x86_64": "x86", "arm64": "arm"}


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
        if not refusals(wanted, offer)
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
    """Return why nothing was found, and what comes closest.

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
    wrong = _wrong_names(kinds, wanted)
    if wrong:
        return f"{where}: {wrong}"
    if _disk(wanted, 0) > MOST_DISK_GB:
        return f"a disk of {_disk(wanted, 0):,.0f} GB is more than EBS has, which is {MOST_DISK_GB:,} GB"
    judged = [
        (offer, refusals(wanted, offer))
        for market in markets
        for offer in _of_market(market, wanted, zones=(), any_gpu=any_gpu, disk_gb=0)
        if offer.region in regions
    ]
    candidates = rank((offer for offer, reasons in judged if _only(reasons, *HARD_TO_GET)), regions)
    if candidates:
        return f"{where}: {_nearly(candidates, wanted)}"
    if any(_only(reasons, "spot_policy", *HARD_TO_GET) for _, reasons in judged):
        return f"{where}: no instance type that has the resources asked for is sold as spot"
    for refusal in judged[0][1] if judged else ():
        if refusal.key in ("backends", "fleets"):
            return str(refusal)
    return f"{where}: none of {len({kind.name for kind in kinds})} instance types has the resources asked for"


def _wrong_names(kinds: Sequence[InstanceType], wanted: Requirements) -> str | None:
    known = {kind.name for kind in kinds}
    if wanted.instance_types and not known & set(wanted.instance_types):
        hint = next(filter(None, (nearest(name, sorted(known)) for name in wanted.instance_types)), None)
        return f"there is no usable instance type {one_of(wanted.instance_types)}" + (
            f"; did you mean {hint}?" if hint else ""
        )
    zones = sorted({zone for kind in kinds for zone in kind.zones})
    if wanted.availability_zones and not set(zones) & set(wanted.availability_zones):
        asked = one_of(wanted.availability_zones)
        return f"there is no availability zone {asked}; there are: {', '.join(zones)}"
    return None


def _nearly(candidates: Sequence[Offer], wanted: Requirements) -> str:
    unknown = sum(1 for offer in candidates if offer.price is None)
    first = candidates[0]
    if wanted.max_price is not None and first.price is None:
        return f"max_price cannot be checked: the prices of all {unknown} matching offers are unknown"
    if wanted.max_price is not None and first.price is not None and first.price > wanted.max_price:
        return (
            f"the cheapest of {len(candidates)} matching offers, {'spot ' if first.spot else ''}"
            f"{first.instance_type}, costs ${first.price:.4g} an hour, more than the max_price of "
            f"${wanted.max_price:.4g}" + (f"; the prices of {unknown} are unknown" if unknown else "")
        )
    return "no availability zone that may be used has a matching instance type"


def _of_market(
    market: Market, wanted: Requirements, *, zones: Sequence[str], any_gpu: bool, disk_gb: float
) -> Iterator[Offer]:
    size = min(_disk(wanted, disk_gb), MOST_DISK_GB)
    for kind in market.types:
        if not _usable(kind, wanted, any_gpu=any_gpu):
            continue
        here = [zone for zone in kind.zones if not zones or zone in zones]
        if not here:
            continue
        # Of the zones that were asked for, or if there is none, of those that the refusal will name.
        asked = [zone for zone in here if zone in (wanted.availability_zones or ())] or here
        common = {
            "backend": BACKEND,
            "instance_type": kind.name,
            "region": market.region,
            "architecture": ARCHITECTURES.get(kind.architecture, kind.architecture),
            "cpus": kind.cpus,
            "memory_gb": kind.memory_gb,
            "gpus": kind.gpus,
            "disk_gb": size,
        }
        if kind.spot:
            by_zone = market.spot.get(kind.name, {})
            cheapest_first = sorted(asked, key=lambda zone: (by_zone.get(zone, float("inf")), zone))
            price = by_zone.get(cheapest_first[0])
            yield Offer(**common, zones=tuple(cheapest_first), price=price, spot=True)
        yield Offer(**common, zones=tuple(asked), price=market.on_demand.get(kind.name))


def _only(reasons: Iterable[Refusal], *keys: str) -> bool:
    return {reason.key for reason in reasons} <= set(keys)


def _usable(kind: InstanceType, wanted: Requirements, *, any_gpu: bool) -> bool:
    """Return whether a kind of machine is one that somebody who asks for this expects, and that boots."""
    resources = wanted.resources
    cpu = resources.cpu
    # Most container images are for x86 only; arm must be asked for, by architecture or by type.
    if kind.architecture == "arm64" and (cpu is None or cpu.arch is None) and not wanted.instance_types:
        return False
    if resources.memory is None and kind.memory_gb < LEAST_MEMORY_GB:
        return False
    if resources.gpu is None:
        return not kind.gpus or bool(wanted.instance_types)
    return any_gpu or all(gpu.name in DRIVEN for gpu in kind.gpus)


def _disk(wanted: Requirements, disk_gb: float) -> float:
    if wanted.resources.disk is None:
        return disk_gb
    size = wanted.resources.disk.size
    if size.min is not None:
        return float(size.min)
    return min(disk_gb, float(size.max)) if size.max is not None else disk_gb
