from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.placement import on_one_network, place
from prefect_dstack.errors import NoOfferError


@dataclass(frozen=True)
class Offered:
    instance_type: str
    slots: int | None = None
    price: float | None = None
    backend: str = "ssh"
    network: str = ""


held = st.builds(Offered, st.sampled_from("abcdef"), st.integers(0, 5))
made = st.builds(Offered, st.sampled_from("xyz"), st.none(), st.none() | st.floats(0, 10), st.just("aws"))
offers = st.lists(held, max_size=6, unique_by=lambda offer: offer.instance_type)
occupations = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5))


def first_choices(placed: list[list[Offered]]) -> Counter[str]:
    return Counter(each[0].instance_type for each in placed)


@given(offers, st.lists(made, max_size=3), st.integers(0, 12), occupations)
def test_no_machine_gets_more_than_fits(
    held: list[Offered], made: list[Offered], count: int, occupied: dict[str, int]
) -> None:
    room = sum(offer.slots or 0 for offer in held)
    if count > room and not made:
        with pytest.raises(NoOfferError):
            place(held, count, occupied)
        return
    placed = place([*held, *made], count, occupied)
    assert len(placed) == count
    chosen = first_choices(placed)
    assert all(chosen[offer.instance_type] <= (offer.slots or 0) for offer in held)
    # Machines that we hold are filled before others are made.
    assert sum(chosen[offer.instance_type] for offer in held) == min(count, room)


@given(offers, st.integers(0, 12), occupations)
def test_the_same_question_has_the_same_answer(
    held: list[Offered], count: int, occupied: dict[str, int]
) -> None:
    if count <= sum(offer.slots or 0 for offer in held):
        assert place(held, count, occupied) == place(held, count, occupied)


@given(st.integers(1, 6), st.integers(0, 30), st.integers(5, 9))
def test_replicas_are_spread_evenly(hosts: int, count: int, slots: int) -> None:
    count = min(count, hosts * slots)
    chosen = first_choices(place([Offered(f"h{n}", slots) for n in range(hosts)], count))
    numbers = [chosen[f"h{n}"] for n in range(hosts)]
    assert max(numbers) - min(numbers) <= 1


def test_a_host_that_has_replicas_of_the_service_comes_later() -> None:
    placed = place([Offered("a", 9), Offered("b", 9)], 2, {"a": 2})
    assert first_choices(placed) == {"b": 2}


def test_the_emptiest_comes_first() -> None:
    assert place([Offered("a", 2), Offered("b", 3)], 1)[0][0].instance_type == "b"


def test_the_others_are_tried_when_the_first_fails() -> None:
    placed = place([Offered("a", 1), Offered("b", 1), Offered("x", None, 2.0), Offered("y", None, 1.0)], 1)
    assert [offer.instance_type for offer in placed[0]] == ["a", "b", "y", "x"]


def test_an_unknown_price_comes_last() -> None:
    placed = place([Offered("x"), Offered("y", None, 3.0), Offered("z", None, 0.0)], 1)
    assert [offer.instance_type for offer in placed[0]] == ["z", "y", "x"]


def test_no_room_says_what_was_asked_and_what_is_left() -> None:
    with pytest.raises(NoOfferError, match=r"4 replicas asked, room for 3 \(a: 1, b: 2\)"):
        place([Offered("a", 1), Offered("b", 2)], 4)


networked = st.builds(
    Offered,
    st.sampled_from("abcdef"),
    st.none() | st.integers(0, 3),
    st.none() | st.floats(0, 10),
    network=st.sampled_from(["", "10.0.0.0/24", "10.1.0.0/24"]),
)
groups_of_offers = st.dictionaries(st.integers(0, 2), st.lists(networked, max_size=5), min_size=1)


@given(groups_of_offers, st.booleans())
def test_what_connects_to_each_other_is_on_one_network(
    offers: dict[int, list[Offered]], private: bool
) -> None:
    each = [{offer.network for offer in group} - ({""} if private else set()) for group in offers.values()]
    counts = dict.fromkeys(offers, 1)
    if not set.intersection(*each):
        with pytest.raises(NoOfferError, match="hello: connect to each other"):
            on_one_network("hello", offers, counts, private=private)
        return
    kept = on_one_network("hello", offers, counts, private=private)
    (network,) = {offer.network for group in kept.values() for offer in group}
    assert kept == {
        index: [offer for offer in group if offer.network == network] for index, group in offers.items()
    }
    assert network or not private


def test_the_cheapest_network_with_room_for_all_is_chosen_and_kept() -> None:
    offers = {
        0: [Offered("a", 1, 1.0, network="small"), Offered("b", 4, 2.0, network="large")],
        1: [Offered("c", 1, 1.0, network="small"), Offered("d", 4, 2.0, network="large")],
    }

    def chosen(count: int, *used: str) -> str:
        kept = on_one_network("hello", offers, {0: 1, 1: count}, used=used)
        return kept[0][0].network

    assert chosen(1) == "small"
    assert chosen(2) == "large"
    assert chosen(1, "large") == "large"
    with pytest.raises(NoOfferError, match="an offer on elsewhere, where the others are"):
        chosen(1, "elsewhere")
