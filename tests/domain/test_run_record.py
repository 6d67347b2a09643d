"""What is remembered of a task or a development environment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from prefect_dstack.domain.run_record import RunRecord


def record(**fields: Any) -> RunRecord:
    required: dict[str, Any] = {
        "kind": "task",
        "name": "train",
        "number": 1,
        "configuration": {"type": "task"},
        "directory": "/work",
        "runtime": "docker",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return RunRecord(**(required | fields))


@pytest.mark.parametrize(
    ("state", "over"),
    [
        ("provisioning", False),
        ("running", False),
        ("stopping", False),
        ("done", True),
        ("failed", True),
        ("stopped", True),
    ],
)
def test_a_run_is_over_when_nothing_of_it_is_to_run(state: str, over: bool) -> None:
    assert record(state=state).is_over is over


def test_what_a_newer_version_has_added_is_kept() -> None:
    stored = record().model_dump(mode="json") | {"added_later": 7}

    assert RunRecord.model_validate(stored).model_dump(mode="json")["added_later"] == 7


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValidationError):
        record(state="sleeping")
