"""Records that other versions have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.domain.migration import read_record
from prefect_dstack.domain.record import RECORD_VERSION
from prefect_dstack.errors import OrchestratorError

STORED = Path(__file__).parent / "data" / "record-version-1.json"


@pytest.fixture
def stored() -> dict[str, Any]:
    """A record as version 1 has saved it: four revisions, a rollback, and a deployment under way."""
    data: dict[str, Any] = json.loads(STORED.read_text())
    return data


def test_the_wanted_number_of_replicas_is_taken_from_the_active_revision(stored: dict[str, Any]) -> None:
    record = read_record(stored)
    assert (record.version, record.kind) == (RECORD_VERSION, "service")
    assert record.desired is not None
    assert (record.wanted_replicas, record.desired.set_by) == (2, "configuration")


def test_all_else_is_kept(stored: dict[str, Any]) -> None:
    record = read_record(stored).model_dump(mode="json")
    for key in ("name", "salt", "gateway", "active", "last_revision", "taken_off"):
        assert record[key] == stored[key]
    assert record["endpoint"] == {**record["endpoint"], **stored["endpoint"]}
    assert {**record["deploying"], **stored["deploying"]} == record["deploying"]
    for now, then in zip(record["revisions"], stored["revisions"], strict=True):
        assert {**now, **then} == now


def test_a_rollback_returns_to_what_served_last(stored: dict[str, Any]) -> None:
    record = read_record(stored)
    assert record.active == 1
    assert record.previous_revision.number == 2
    assert read_record({**stored, "active": None}).previous_revision.number == 1


def test_what_was_migrated_is_read_again_as_it_is(stored: dict[str, Any]) -> None:
    record = read_record(stored)
    assert read_record(record.model_dump(mode="json")) == record


def test_fields_of_a_newer_version_are_kept_on_every_level(stored: dict[str, Any]) -> None:
    data = read_record(stored).model_dump(mode="json")
    data["budget"] = {"usd": 5}
    data["revisions"][0]["model"] = "s3://models/1"
    data["deploying"]["approver"] = "ada"
    kept = read_record(data).failed(4, "it was cancelled").model_dump(mode="json")
    assert kept["budget"] == {"usd": 5}
    assert kept["revisions"][0]["model"] == "s3://models/1"
    assert read_record(data).model_dump(mode="json")["deploying"]["approver"] == "ada"


def test_a_newer_version_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(OrchestratorError, match=r"hello: its record has version 3, .* upgrade"):
        read_record({**stored, "version": RECORD_VERSION + 1})
