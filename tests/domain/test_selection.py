"""Which replicas stay when a service is to have fewer of them, or others."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.groups import replica_numbers
from prefect_dstack.domain.record import DesiredReplicas, now
from prefect_dstack.domain.selection import numbers_in_place_of, numbers_to_keep

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=3)


@st.composite
def services(draw: st.DrawFn) -> tuple[list[int], tuple[int, ...]]:
    """How many replicas each group has, and the numbers of them."""
    counts = draw(COUNTS)
    return counts, replica_numbers(counts, draw(st.sets(st.integers(0, 20))))


def of_groups(numbers: tuple[int, ...], groups: int) -> list[int]:
    counted = Counter(number % groups for number in numbers)
    return [counted[index] for index in range(groups)]


class TestFewerOrMore:
    @given(services(), st.data())
    def test_each_group_gets_what_it_is_to_have_and_keeps_its_busiest(
        self, service: tuple[list[int], tuple[int, ...]], data: st.DataObject
    ) -> None:
        before, present = service
        size = len(before)
        counts = data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
        load = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(present, st.integers(0, 9))))

        kept = numbers_to_keep(present, counts, load)

        assert of_groups(kept, size) == counts
        for index, count in enumerate(counts):
            mine = [number for number in present if number % size == index]
            stay = [load.get(number, -1) for number in mine if number in kept]
            go = [load.get(number, -1) for number in mine if number not in kept]
            assert len(stay) == min(count, len(mine))
            assert min(stay, default=99) >= max(go, default=-1)

    def test_of_idle_replicas_the_last_go(self) -> None:
        assert numbers_to_keep([0, 1, 2], [2], {}) == (0, 1)

    def test_one_that_fails_goes_before_one_that_is_idle(self) -> None:
        assert numbers_to_keep([0, 1, 2], [2], {1: 0, 2: 0}) == (1, 2)

    def test_more_are_the_lowest_that_are_free(self) -> None:
        assert numbers_to_keep([1, 3], [4], {}) == (0, 1, 2, 3)


class TestOthers:
    @given(services(), st.data())
    def test_take_the_place_of_those_that_leave_and_the_rest_stay(
        self, service: tuple[list[int], tuple[int, ...]], data: st.DataObject
    ) -> None:
        counts, present = service
        leaving = data.draw(st.sets(st.sampled_from(present))) if present else set()

        numbers = numbers_in_place_of(leaving, present, counts)

        assert of_groups(numbers, len(counts)) == counts
        assert set(present) - leaving <= set(numbers)
        assert not leaving & set(numbers)


class TestPreferred:
    def desired(self, replicas: int, **fields: Any) -> DesiredReplicas:
        return DesiredReplicas(replicas=replicas, set_by="somebody", set_at=now(), **fields)

    def test_replicas_are_taken_before_lower_ones(self) -> None:
        desired = self.desired(2).preferring((1, 3), ("",))
        assert desired.numbers(("",)) == (1, 3)

    def test_the_lowest_are_not_remembered(self) -> None:
        assert self.desired(2).preferring((0, 1), ("",)) == self.desired(2)

    def test_of_other_groups_are_ignored(self) -> None:
        desired = self.desired(3, groups={"a": 1, "b": 2}, preferred=(1, 3))
        assert desired.numbers(("a", "b")) == (0, 1, 3)
