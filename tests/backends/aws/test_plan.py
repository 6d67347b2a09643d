from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.aws.plan import Attempt, Attempts, client_token
from prefect_dstack.backends.base import Offer
from prefect_dstack.domain.stamp import Stamp

offers = st.lists(
    st.builds(
        Offer,
        backend=st.just("aws"),
        instance_type=st.sampled_from(["g5.xlarge", "g6.xlarge", "g4dn.xlarge"]),
        region=st.sampled_from(["eu-west-1", "us-east-1"]),
        zones=st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple),
        cpus=st.just(4),
        memory_gb=st.just(16),
        spot=st.booleans(),
    ),
    unique_by=lambda offer: (offer.instance_type, offer.region, offer.spot),
)


@given(offers)
def test_every_zone_of_every_offer_is_tried_once_in_the_given_order(given_offers: list[Offer]) -> None:
    tried = [(attempt.offer, attempt.zone) for attempt in Attempts(given_offers)]
    assert tried == [(offer, zone) for offer in given_offers for zone in offer.zones]


@given(offers, st.data())
def test_what_is_given_up_is_not_tried_again_and_the_rest_is(
    given_offers: list[Offer], data: st.DataObject
) -> None:
    attempts = Attempts(given_offers)
    hopeless = data.draw(st.sets(st.sampled_from(given_offers))) if given_offers else set()
    tried = []
    for attempt in attempts:
        tried.append((attempt.offer, attempt.zone))
        if attempt.offer in hopeless:
            attempts.give_up(attempt)
    expected = [
        (offer, zone)
        for offer in given_offers
        for zone in (offer.zones[:1] if offer in hopeless else offer.zones)
    ]
    assert tried == expected


STAMP = Stamp(service="hello", revision=1, replica=0, flow_run="f")
OFFER = Offer(backend="aws", instance_type="g5.xlarge", region="r", zones=("a", "b"), cpus=4, memory_gb=16)


def test_a_token_names_one_request_and_fits_into_ec2s_limit() -> None:
    first = client_token(STAMP, Attempt(OFFER, "a"), 0)
    assert first == client_token(STAMP, Attempt(OFFER, "a"), 0)
    others = {
        client_token(STAMP, Attempt(OFFER, "b"), 0),
        client_token(STAMP, Attempt(OFFER, "a"), 1),
        client_token(STAMP, Attempt(OFFER.model_copy(update={"spot": True}), "a"), 0),
        client_token(STAMP, Attempt(OFFER.model_copy(update={"instance_type": "g6.xlarge"}), "a"), 0),
        *(
            client_token(STAMP.model_copy(update=change), Attempt(OFFER, "a"), 0)
            for change in ({"service": "bye"}, {"revision": 2}, {"replica": 1}, {"flow_run": "g"})
        ),
    }
    assert len(others) == 8
    assert first not in others
    assert all(len(token) == 64 and token.isascii() for token in [first, *others])
