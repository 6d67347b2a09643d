"""Reading the records of all services again and again, as a controller does."""

from __future__ import annotations

import pytest

from prefect_dstack.store.records import Known, delete_record, new_record, readable_records, save_record
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration


def test_a_record_that_has_not_changed_is_not_parsed_again(prefect_server: PrefectServer, name: str) -> None:
    same, changed, deleted = (new_record(f"{name}-{word}") for word in ("same", "changed", "deleted"))
    for record in (same, changed, deleted):
        save_record(record)
    known: Known = {}
    before = {record.name: record for record in readable_records(known)[0]}

    save_record(changed.model_copy(update={"gateway": "edge"}))
    delete_record(deleted.name)
    after = {record.name: record for record in readable_records(known)[0]}

    assert after[same.name] is before[same.name]
    assert (before[changed.name].gateway, after[changed.name].gateway) == ("local", "edge")
    assert deleted.name not in after
    assert known.keys() == after.keys()
    for record in (same, changed):
        delete_record(record.name)
