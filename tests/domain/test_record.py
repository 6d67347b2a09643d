"""The record of a service: what its revisions were, how they ended, and which of them shall serve."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.record import (
    LOST,
    Decision,
    Deploying,
    DesiredReplicas,
    Endpoint,
    Outcome,
    PendingApproval,
    Revision,
    ServiceRecord,
    check_replicas,
    now,
    readable,
)
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import NotFoundError, UserError


def revision(number: int, **fields: Any) -> Revision:
    return Revision.model_validate(
        {
            "number": number,
            "configuration": {"type": "service", "port": 8000},
            "directory": "/work",
            "workload": f"w{number}",
            "settings": "s",
            "created_at": now(),
            "replicas_of": number,
            **fields,
        }
    )


def endpoint(number: int) -> Endpoint:
    return Endpoint(
        url="http://127.0.0.1:8080", service="hello", revision=number, replicas=[f"hello-{number}-0"]
    )


def begin(record: ServiceRecord, number: int, retain: int = 10) -> ServiceRecord:
    return record.begun(revision(number), Deploying(revision=number, flow_run=f"run-{number}"), retain)


def serve(record: ServiceRecord, number: int, retain: int = 10) -> ServiceRecord:
    return begin(record, number, retain).served(number, endpoint(number))


class TestScaled:
    def to(self, replicas: int, **fields: Any) -> DesiredReplicas:
        return DesiredReplicas(replicas=replicas, set_by="somebody", set_at=now(), **fields)

    def test_says_from_how_many_to_how_many_and_why(self) -> None:
        record = serve(ServiceRecord(name="hello", salt="s").scaled(self.to(2)), 1)
        assert record.desired is not None
        assert record.desired.change == "? → 2", "nothing was to serve before"
        record = record.scaled(self.to(4, reason="31 in flight, target 8")).scaled(self.to(3))
        assert [it.change for it in record.scalings[1:]] == ["2 → 4: 31 in flight, target 8", "4 → 3"]

    def test_has_changed_then_as_it_has_when_another_revision_serves(self) -> None:
        assert ServiceRecord(name="hello", salt="s").changed_at.year == 1
        served = serve(ServiceRecord(name="hello", salt="s"), 1)
        assert served.active_revision is not None
        assert served.changed_at == served.active_revision.served_at
        later = now() + timedelta(minutes=1)
        assert served.scaled(self.to(2).model_copy(update={"set_at": later})).changed_at == later

    def test_pinning_the_same_number_is_no_change(self) -> None:
        record = serve(ServiceRecord(name="hello", salt="s").scaled(self.to(2)), 1).scaled(self.to(4))
        record = record.scaled(self.to(4, pinned=True))
        assert record.desired is not None
        assert (record.desired.pinned, record.desired.change) == (True, "2 → 4")
        assert len(record.scalings) == 2


@pytest.mark.parametrize("number", [-1, 1001])
def test_a_number_of_replicas_that_makes_no_sense_is_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"must be from 0 to 1000, not {number}"):
        check_replicas(number)


def outcomes(record: ServiceRecord) -> dict[int, Outcome]:
    return {known.number: known.outcome for known in record.revisions}


NEW = ServiceRecord(name="hello", salt="pepper")


class TestDeployment:
    def test_begins_without_touching_what_serves(self) -> None:
        record = begin(serve(NEW, 1), 2)

        assert record.active == 1
        assert record.endpoint == endpoint(1)
        assert record.last_revision == 2
        assert record.deploying == Deploying(revision=2, flow_run="run-2")
        assert outcomes(record) == {1: "active", 2: "deploying"}

    def test_ends_with_the_new_revision_in_the_place_of_the_old(self) -> None:
        record = serve(serve(NEW, 1), 2)

        assert (record.active, record.deploying) == (2, None)
        assert record.endpoint == endpoint(2)
        assert record.active_revision == record.revision(2)
        assert outcomes(record) == {1: "superseded", 2: "active"}

    def test_fails_with_a_reason_and_leaves_the_old_one(self) -> None:
        record = begin(serve(NEW, 1), 2).failed(2, "it exited")

        assert (record.active, record.deploying) == (1, None)
        assert record.endpoint == endpoint(1)
        assert outcomes(record) == {1: "active", 2: "failed"}
        assert record.revision(2).reason == "it exited"

    def test_notes_that_the_one_before_it_was_killed(self) -> None:
        record = serve(begin(serve(NEW, 1), 2), 3)

        assert outcomes(record) == {1: "superseded", 2: "failed", 3: "active"}
        assert record.revision(2).reason == "its flow run ended before it was done"

    def test_fails_the_first_time_and_nothing_serves(self) -> None:
        record = begin(NEW, 1).failed(1, "it exited")

        assert (record.active, record.active_revision, record.endpoint) == (None, None, None)

    def test_of_the_active_revision_does_not_fail_it(self) -> None:
        """A repair of what serves may fail; what serves is wanted still."""
        record = serve(NEW, 1).failed(1, "no capacity")

        assert outcomes(record) == {1: "active"}
        assert record.active == 1

    def test_again_of_the_same_revision_keeps_it_once(self) -> None:
        record = serve(begin(serve(NEW, 1), 2), 2)

        assert outcomes(record) == {1: "superseded", 2: "active"}

    def test_back_to_an_earlier_revision(self) -> None:
        record = serve(serve(NEW, 1), 2)

        back = record.served(1, endpoint(1))

        assert back.active == 1
        assert outcomes(back) == {1: "active", 2: "superseded"}


class TestStop:
    def test_leaves_the_history(self) -> None:
        record = serve(NEW, 1).stopped()

        assert (record.active, record.endpoint, record.deploying) == (None, None, None)
        assert outcomes(record) == {1: "stopped"}

    def test_of_what_never_served_notes_only_that_it_was_asked_for(self) -> None:
        assert NEW.stopped() == NEW.model_copy(update={"taken_off": True})

    def test_is_forgotten_by_the_next_deployment(self) -> None:
        assert not serve(serve(NEW, 1).stopped(), 2).taken_off

    def test_notes_what_became_of_a_deployment_that_died(self) -> None:
        record = begin(serve(NEW, 1), 2).stopped()

        assert outcomes(record) == {1: "stopped", 2: "failed"}
        assert record.revision(2).reason == LOST

    def test_then_a_deployment_counts_on(self) -> None:
        record = serve(serve(NEW, 1).stopped(), 2)

        assert outcomes(record) == {1: "stopped", 2: "active"}


class TestAbandoned:
    def test_a_deployment_has_failed_and_what_served_serves_on(self) -> None:
        record = begin(serve(NEW, 1), 2).abandoned()

        assert (record.active, record.deploying) == (1, None)
        assert outcomes(record) == {1: "active", 2: "failed"}

    def test_a_change_of_what_serves_has_not_failed(self) -> None:
        scaled = serve(NEW, 1).model_copy(update={"deploying": Deploying(revision=1, flow_run="run")})

        assert scaled.abandoned() == scaled.model_copy(update={"deploying": None})

    def test_a_stop_goes_on(self) -> None:
        stopping = (
            serve(NEW, 1).stopped().model_copy(update={"deploying": Deploying(revision=None, flow_run="r")})
        )

        assert stopping.abandoned() == stopping


class TestRetention:
    @given(
        retain=st.integers(1, 5), ends=st.lists(st.sampled_from(["served", "failed", "stopped"]), max_size=12)
    )
    def test_keeps_so_many_and_always_the_active_one(self, retain: int, ends: list[str]) -> None:
        record = NEW
        for number, end in enumerate(ends, start=1):
            record = begin(record, number, retain)
            if end == "served":
                record = record.served(number, endpoint(number))
            elif end == "failed":
                record = record.failed(number, "because")
            else:
                record = record.failed(number, "because").stopped()
            kept = [known.number for known in record.revisions]

            assert kept == sorted(set(kept))
            assert kept[-1] == number == record.last_revision
            assert len(kept) <= 2 * retain + 2
            ended = dict(enumerate(ends[:number], start=1))
            assert set(list(ended)[-retain:]) <= set(kept)
            assert set([number for number, end in ended.items() if end == "served"][-retain:]) <= set(kept)
            assert record.active is None or record.active in kept

    def test_failures_do_not_push_out_what_one_can_go_back_to(self) -> None:
        record = serve(serve(NEW, 1, 2), 2, 2)
        for number in range(3, 9):
            record = begin(record, number, 2).failed(number, "because")

        assert outcomes(record) == {
            1: "superseded",
            2: "active",
            6: "failed",
            7: "failed",
            8: "failed",
        }

    def test_of_a_forgotten_revision_says_which_are_kept(self) -> None:
        record = NEW
        for number in range(1, 5):
            record = serve(record, number, 2)

        with pytest.raises(NotFoundError, match="hello: there is no revision 1; kept are: 2, 3, 4"):
            record.revision(1)
        with pytest.raises(NotFoundError, match="kept are: none"):
            NEW.revision(1)


class TestForm:
    def test_survives_the_way_through_json(self) -> None:
        record = begin(serve(NEW, 1), 2)

        assert ServiceRecord.model_validate(json.loads(json.dumps(record.model_dump(mode="json")))) == record

    def test_of_a_configuration_can_be_read_as_yaml(self) -> None:
        configuration = {"type": "service", "port": 8000, "commands": ["one", "two: three"]}

        assert yaml.safe_load(readable(configuration)) == configuration

    def test_of_an_endpoint_is_its_url(self) -> None:
        assert str(endpoint(1)) == "http://127.0.0.1:8080"

    def test_of_the_time_has_a_zone(self) -> None:
        assert now().utcoffset() is not None


class TestStamp:
    @given(
        service=st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
        number=st.integers(1, 10**6),
        replica=st.integers(0, 10**6),
        run=st.text(max_size=40),
        separator=st.sampled_from([".", ":"]),
    )
    def test_is_read_back_from_labels(
        self, service: str, number: int, replica: int, run: str, separator: str
    ) -> None:
        stamp = Stamp(service=service, revision=number, replica=replica, flow_run=run)
        labels = {"unrelated": "label", **stamp.labels(separator)}

        assert Stamp.from_labels(labels, separator) == stamp
        assert stamp.name == f"{service}-{number}-{replica}"

    @pytest.mark.parametrize(
        "labels",
        [
            {},
            {"prefect-dstack.service": "hello"},
            {
                "prefect-dstack.service": "hello",
                "prefect-dstack.revision": "x",
                "prefect-dstack.replica": "0",
            },
            {
                "prefect-dstack.service": "hello",
                "prefect-dstack.revision": "0",
                "prefect-dstack.replica": "0",
            },
            {
                "prefect-dstack.service": "hello",
                "prefect-dstack.revision": "1",
                "prefect-dstack.replica": "-1",
            },
        ],
    )
    def test_is_not_read_from_what_is_none(self, labels: dict[str, str]) -> None:
        assert Stamp.from_labels(labels) is None


class TestApproval:
    def waiting(self, expires_in: int = 60) -> ServiceRecord:
        record = begin(serve(NEW, 1), 2)
        return record.waiting(
            PendingApproval(
                revision=2,
                flow_run="run-2",
                requested_at=now(),
                expires_at=now() + timedelta(seconds=expires_in),
            )
        )

    def test_waits_for_no_process(self) -> None:
        record = self.waiting()

        assert record.deploying is None
        assert record.active == 1
        assert record.pending() == record.approval
        assert ServiceRecord.model_validate_json(record.model_dump_json()) == record

    def test_expires(self) -> None:
        record = self.waiting(-1)

        assert record.approval is not None
        assert record.pending() is None

    def test_ends_with_a_reason(self) -> None:
        decision = Decision(approved=False, by="Ada", at=now(), reason="too slow")
        record = self.waiting().withdrawn(decision)

        assert record.approval is None
        assert outcomes(record) == {1: "active", 2: "failed"}
        assert (record.revision(2).reason, record.revision(2).decision) == ("too slow", decision)
        assert record.withdrawn(decision) == record

    def test_ends_with_a_stop(self) -> None:
        record = self.waiting().stopped()

        assert record.approval is None
        assert outcomes(record) == {1: "stopped", 2: "failed"}

    def test_outlives_the_failure_of_something_else(self) -> None:
        record = self.waiting()

        assert record.failed(1, "no capacity").approval == record.approval
        assert record.failed(2, "it exited").approval is None
