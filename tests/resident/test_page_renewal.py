"""Pages are drawn as often as somebody has asked their services, and a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefect_dstack.domain.load_history import INTERVAL, LoadPoint
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.gateways.counters import ProcessSample, Row
from prefect_dstack.resident import load_pages
from prefect_dstack.resident.load_pages import ALLOWANCE, IDLE, PUBLISHED, LoadPages, renewed_after

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = 60.0


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [([0.0], IDLE), ([2.0, 0.0, 0.0], IDLE), ([0.0, 2.0], PUBLISHED), ([2.0, 0.0], PUBLISHED)],
)
def test_a_page_is_drawn_often_only_while_there_is_a_load(rates: list[float], seconds: float) -> None:
    points = [LoadPoint(NOON + number * INTERVAL, rate, 1) for number, rate in enumerate(rates)]

    assert renewed_after(points) == seconds


class Drawing:
    """Looks once a minute at services behind one gateway; a picture takes two fifths of what a look may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, idle: int, busy: int) -> None:
        self.now = self.computed = 0.0
        self.drawn: list[str] = []
        self.busy = [f"busy-{number}" for number in range(busy)]
        self.names = [f"idle-{number}" for number in range(idle)] + self.busy
        self.records = [ServiceRecord(name=name, salt="salt") for name in self.names]
        self.answers = 0
        self.pages = LoadPages(lambda: self.now, lambda: self.computed)
        monkeypatch.setattr(load_pages, "publish_load", self.draw)
        monkeypatch.setattr(load_pages, "sharing_client", nullcontext)

    def draw(self, record: ServiceRecord, points: Sequence[LoadPoint]) -> None:
        self.drawn.append(record.name)
        self.computed += ALLOWANCE * 0.4

    def samples(self) -> tuple[list[ProcessSample], dict[str, Any]]:
        rows = {name: Row(dict.fromkeys(("1xx", "2xx", "3xx", "4xx", "5xx"), 0)) for name in self.names}
        for name in self.busy:
            rows[name] = Row({**rows[name].counters, "2xx": self.answers})
        replicas = {name: {f"{name}-1-0": Row({}, ready=True, up=True)} for name in self.names}
        return [ProcessSample(1, True, rows, replicas)], {}

    def look(self) -> list[str]:
        """Look once, and return whose pages were drawn."""
        before = len(self.drawn)
        gateway = SimpleNamespace(control=self)
        self.pages.look(cast("Any", SimpleNamespace(find_gateway=lambda name: gateway)), self.records)
        self.now += MINUTE
        self.answers += 60
        return self.drawn[before:]


def test_what_takes_too_long_for_one_look_is_drawn_at_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = Drawing(monkeypatch, idle=7, busy=0)

    looks = [len(drawing.look()) for _ in range(6)]

    assert looks == [0, 3, 3, 1, 0, 0]
    assert sorted(drawing.drawn) == drawing.names


def test_services_with_a_load_are_drawn_first(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = Drawing(monkeypatch, idle=4, busy=2)

    looks = [drawing.look() for _ in range(3)]

    assert set(looks[1]) >= set(drawing.busy)
    assert len(looks[2]) == 3


def test_idle_services_get_their_turn_beside_more_busy_ones_than_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawing = Drawing(monkeypatch, idle=2, busy=40)

    for _ in range(round(2 * IDLE / MINUTE)):
        drawing.look()

    assert set(drawing.drawn) == set(drawing.names)
