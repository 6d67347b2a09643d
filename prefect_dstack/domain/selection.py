"""Which replicas of a service stay when it is to have fewer, or others. Decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from prefect_dstack.domain.groups import replica_numbers

__all__ = ["numbers_in_place_of", "numbers_to_keep"]


def numbers_to_keep(
    present: Sequence[int], counts: Sequence[int], load: Mapping[int, int]
) -> tuple[int, ...]:
    """Choose the replicas that a service has in the end, if it is to have more of them or fewer.

    The least loaded of each group go first, since they are drained soonest; of equally loaded ones the last.

    Args:
        present: The numbers of the replicas that it has.
        counts: How many there are to be in each group.
        load: The open requests of each replica, by its number; one that is missing serves none.

    Returns:
        Their numbers, in order; new ones are the lowest that are free.

    Example:
        >>> numbers_to_keep([0, 1, 2], [2], {0: 1, 1: 7, 2: 3})
        (1, 2)
    """
    busiest = sorted(present, key=lambda number: (-load.get(number, -1), number))
    return replica_numbers(counts, _first(busiest, counts))


def numbers_in_place_of(
    leaving: Collection[int], present: Sequence[int], counts: Sequence[int]
) -> tuple[int, ...]:
    """Choose replicas that take the place of some, while all others stay.

    Args:
        leaving: The numbers of the replicas that are to go.
        present: The numbers of the replicas that the service has.
        counts: How many there are to be in each group.

    Returns:
        The numbers of the replicas in the end, in order; none of them is one that is to go.

    Example:
        >>> numbers_in_place_of([1], [0, 1, 2], [3])
        (0, 2, 3)
    """
    # As many more as are to go: whatever the lowest free ones are, enough of them are others.
    more = replica_numbers([count + len(leaving) for count in counts], present)
    stay = [number for number in present if number not in leaving]
    others = [number for number in more if number not in present and number not in leaving]
    return replica_numbers(counts, _first([*stay, *others], counts))


def _first(numbers: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Return the first of each group, as many as there are to be of it."""
    chosen: list[int] = []
    for index, count in enumerate(counts):
        chosen += [number for number in numbers if number % len(counts) == index][:count]
    return chosen
