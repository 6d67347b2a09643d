"""Pages of services that nobody asks are drawn less often: drawing is most of what a controller would do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from prefect_dstack.domain.load_history import INTERVAL, LoadPoint
from prefect_dstack.resident.load_pages import IDLE, PUBLISHED, renewed_after

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [([0.0], IDLE), ([2.0, 0.0, 0.0], IDLE), ([0.0, 2.0], PUBLISHED), ([2.0, 0.0], PUBLISHED)],
)
def test_a_page_is_drawn_often_only_while_there_is_a_load(rates: list[float], seconds: float) -> None:
    points = [LoadPoint(NOON + number * INTERVAL, rate, 1) for number, rate in enumerate(rates)]

    assert renewed_after(points) == seconds
