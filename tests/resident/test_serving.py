"""Which replicas count as serving in metrics and on pages."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.gateways.counters import ProcessSample, Row
from prefect_dstack.gateways.servers import SUCCESSOR
from prefect_dstack.resident.serving import serving
from tests.domain.test_record import revision

GROUPS: list[dict[str, Any]] = [
    {"name": "router", "replicas": 1, "commands": ["route"], "router": {"type": "smg"}},
    {"name": "worker", "replicas": 1, "commands": ["work"]},
]


def record(**keys: Any) -> ServiceRecord:
    configuration = {"type": "service", "port": 8000, **keys}
    return ServiceRecord(name="hello", salt="salt", revisions=(revision(1, configuration=configuration),))


def sample(rows: dict[str, Row], *, current: bool = True) -> ProcessSample:
    return ProcessSample(1, current, {}, {"hello": {**rows, SUCCESSOR: Row({}, ready=True)}})


def test_those_do_that_get_requests() -> None:
    rows = {"hello-1-0": Row({}, ready=True, up=True), "hello-1-1": Row({}, ready=True), "hello-1-2": Row({})}

    found = serving([sample(rows), sample({"gone": Row({}, up=True)}, current=False)], "hello", record())

    assert found == {"hello-1-0": True, "hello-1-1": False, "hello-1-2": False}
    assert serving([sample(rows)], "other", record()) == {}


@pytest.mark.parametrize("ready", [True, False])
def test_behind_a_router_those_do_whose_checks_pass(ready: bool) -> None:
    rows = {"hello-1-0": Row({}, ready=True, up=True), "hello-1-1": Row({}, ready=ready)}

    assert serving([sample(rows)], "hello", record(groups=GROUPS)) == {
        "hello-1-0": True,
        "hello-1-1": ready,
    }
    assert serving([sample(rows)], "hello", None) == {"hello-1-0": True, "hello-1-1": False}
