"""Which offer each replica should try: a decision, made without asking anybody."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from prefect_dstack.errors import NoRoomError

__all__ = ["Placeable", "place"]


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
    made = sorted(
        (offer for offer in offers if offer.slots is None),
        key=lambda offer: math.inf if offer.price is None else offer.price,
    )
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


def _shortage(held: Sequence[Placeable], count: int, placed: int) -> str:
    rooms = ", ".join(f"{offer.instance_type}: {offer.slots}" for offer in held) or "none at all"
    return (
        f"{count} replicas asked, room for {placed} ({rooms}): lower `replicas` or `resources`, or add hosts"
    )
