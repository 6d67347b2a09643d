"""In which order machines are asked for: pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefect_dstack.backends.base import Offer
from prefect_dstack.domain.stamp import Stamp

__all__ = ["Attempt", "Attempts", "client_token"]


@dataclass(frozen=True)
class Attempt:
    """One request for one machine.

    Attributes:
        offer: Which kind.
        zone: Where.
    """

    offer: Offer
    zone: str

    def __str__(self) -> str:
        return f"{self.offer.instance_type} {'spot' if self.offer.spot else 'on-demand'} in {self.zone}"


class Attempts:
    """What to ask for next: offers in the given order, in every zone of each.

    Given cheapest first, that is the next zone, then the next type or region, and from spot to on-demand.

    Args:
        offers: The best first.

    Example:
        >>> offer = Offer(backend="aws", instance_type="g6.xlarge", region="eu-west-1",
        ...               zones=("eu-west-1a", "eu-west-1b"), cpus=4, memory_gb=16)
        >>> [str(attempt) for attempt in Attempts([offer])]
        ['g6.xlarge on-demand in eu-west-1a', 'g6.xlarge on-demand in eu-west-1b']
    """

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._left = [Attempt(offer, zone) for offer in offers for zone in offer.zones]
        self._left.reverse()

    def __iter__(self) -> Iterator[Attempt]:
        while self._left:
            yield self._left.pop()

    def give_up(self, attempt: Attempt) -> None:
        """Leave out the other zones of an offer: a quota is the same in all of them.

        Args:
            attempt: What failed.
        """
        self._left = [left for left in self._left if left.offer != attempt.offer]


def client_token(stamp: Stamp, attempt: Attempt, number: int) -> str:
    """Return a request's client token, with which EC2 carries it out once however often it arrives.

    Args:
        stamp: For whom.
        attempt: What.
        number: Counted up where a machine that the token already names has been terminated.

    Returns:
        64 characters, the most that EC2 takes.
    """
    parts = (
        stamp.service,
        stamp.revision,
        stamp.replica,
        stamp.flow_run,
        attempt.zone,
        attempt.offer.instance_type,
        attempt.offer.spot,
        number,
    )
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
