"""Which offer each replica should try: a decision, made without asking anybody."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from prefect_dstack.errors import NoOfferError, NoRoomError

__all__ = ["Placeable", "on_one_network", "place"]


class Placeable(Protocol):
    """What placement looks at in an offer."""

    @property
    def backend(self) -> str:
        """Whose offer it is."""
        ...

    @property
    def instance_type(self) -> str:
        """What is offered; of a machine that we hold, its name."""
        ...

    @property
    def network(self) -> str:
        """The private network on which machines reach each other; empty: none."""
        ...

    @property
    def price(self) -> float | None:
        """US dollars an hour; None: unknown."""
        ...

    @property
    def slots(self) -> int | None:
        """How many replicas fit; None: one on each machine, and as many machines as are asked for."""
        ...


OfferT = TypeVar("OfferT", bound=Placeable)


def place(
    offers: Sequence[OfferT], count: int, occupied: Mapping[str, int] | None = None
) -> list[list[OfferT]]:
    """Choose for each replica the offers to try, in order.

    Machines that we hold come first, each at most as often as replicas fit, and the one with the fewest
    replicas of the service first, so that losing one machine costs as few replicas as possible. Machines that
    would have to be made come after them, the cheapest first.

    Args:
        offers: What could be had, of each backend the best first.
        count: How many replicas are wanted.
        occupied: How many replicas of the service stay on each machine, by its `instance_type`.

    Returns:
        For each replica its offers; the first ones of all lists together fit.

    Raises:
        NoRoomError: If there is not room for all of them.

    Example:
        >>> from prefect_dstack.backends.base import Offer
        >>> a, b = (Offer(backend="ssh", instance_type=n, cpus=8, memory_gb=32, slots=2) for n in "ab")
        >>> [[offer.instance_type for offer in each] for each in place([a, b], 2)]
        [['a', 'b'], ['b', 'a']]
    """
    held = [offer for offer in offers if offer.slots is not None]
    made = sorted((offer for offer in offers if offer.slots is None), key=_price)
    left = [offer.slots or 0 for offer in held]
    taken = Counter(occupied or {})
    placed: list[list[OfferT]] = []
    for _ in range(count):
        order = sorted(
            (number for number, room in enumerate(left) if room > 0),
            key=lambda number: (taken[held[number].instance_type], -left[number], number),
        )
        candidates = [held[number] for number in order] + made
        if not candidates:
            raise NoRoomError(_shortage(held, count, len(placed)))
        if order:
            left[order[0]] -= 1
            taken[held[order[0]].instance_type] += 1
        placed.append(candidates)
    return placed


def on_one_network(
    name: str,
    offers: Mapping[int, Sequence[OfferT]],
    counts: Mapping[int, int],
    *,
    used: Collection[str] = (),
    private: bool = True,
) -> dict[int, list[OfferT]]:
    """Keep the offers of one network, for workloads that connect to each other.

    Args:
        name: What messages call the service or the task.
        offers: What could be had for each group of it.
        counts: How many workloads of each group are to be placed.
        used: The networks that the service is on already; empty: none yet.
        private: Whether machines without a private network will not do.

    Returns:
        For each group its offers on the network: one that the service is on, else the cheapest that has room
        for all.

    Raises:
        NoOfferError: If no network has an offer for each group.
    """
    networks = dict.fromkeys(offer.network for group in offers.values() for offer in group)
    if private:
        networks.pop("", None)
    if used:
        networks = {network: None for network in networks if network in used}
    kept = [
        {index: [offer for offer in group if offer.network == network] for index, group in offers.items()}
        for network in networks
    ]
    kept = [groups for groups in kept if all(groups.values())]
    if not kept:
        where = f"{', '.join(sorted(used))}, where the others are" if used else "a private network"
        raise NoOfferError(
            f"{name}: connect to each other, and not every one of them has an offer on {where}: use a fleet "
            "whose hosts have a 'network', or a cloud"
        )

    def rank(groups: Mapping[int, Sequence[OfferT]]) -> tuple[bool, float]:
        short = any(_room(group) < counts[index] for index, group in groups.items())
        prices = [min(map(_price, group)) * counts[index] for index, group in groups.items()]
        return short, sum(prices)

    return min(kept, key=rank)


def _room(offers: Sequence[Placeable]) -> float:
    return sum(math.inf if offer.slots is None else offer.slots for offer in offers)


def _price(offer: Placeable) -> float:
    return math.inf if offer.price is None else offer.price


def _shortage(held: Sequence[Placeable], count: int, placed: int) -> str:
    rooms = ", ".join(f"{offer.instance_type}: {offer.slots}" for offer in held) or "none at all"
    return (
        f"{count} replicas asked, room for {placed} ({rooms}): lower `replicas` or `resources`, or add hosts"
    )
