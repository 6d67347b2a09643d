"""The picture of a service's load: an SVG that any browser shows, with deployments where they were."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.domain.load_history import INTERVAL, LoadPoint
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.services.load_plot import DEPLOYED, LEFT, LOAD, REPLICAS, RIGHT, WIDTH, load_plot
from prefect_dstack.services.pages import service_page, with_load
from tests.domain.test_record import revision
from tests.services.test_pages import serving

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"
RECORD = ServiceRecord(name="shop", salt="pepper")


def points(*values: tuple[float, int], start: datetime = NOON) -> list[LoadPoint]:
    return [LoadPoint(start + number * INTERVAL, *value) for number, value in enumerate(values)]


def drawn(markdown: str) -> ET.Element:
    """The picture in Markdown."""
    found = re.match(r"!\[.+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)\n", markdown)
    assert found
    return ET.fromstring(base64.b64decode(found[1]))


def path(svg: ET.Element, colour: str) -> str:
    (found,) = [it for it in svg.iter(f"{SVG}path") if colour in (it.get("fill"), it.get("stroke"))]
    return str(found.get("d"))


def test_it_says_in_words_what_there_is_to_see() -> None:
    shown = load_plot(RECORD, points((1.5, 1), (12.34, 3), (0, 2)))
    assert shown.endswith(
        "2026-01-01 12:00 to 2026-01-01 12:30 UTC: up to 12.3 requests/s (at 12:10), 1 to 3 replicas"
    )


def test_load_and_replicas_are_drawn_to_scale() -> None:
    svg = drawn(load_plot(RECORD, points((5, 1), (10, 2))))
    assert path(svg, LOAD) == "M50.0 120V70.0H400.0V20.0H750.0V120"
    assert path(svg, REPLICAS) == "M50.0 180.0V180.0H400.0V150.0H750.0"


def test_a_gap_stays_a_gap() -> None:
    there = points((5, 1), start=NOON) + points((5, 1), start=NOON + 3 * INTERVAL)
    assert path(drawn(load_plot(RECORD, there)), REPLICAS).count("M") == 2


def test_deployments_and_rollbacks_are_marked_where_they_were() -> None:
    early, late = NOON - timedelta(days=2), NOON + INTERVAL
    revisions = [revision(1, served_at=early), revision(2, served_at=late), revision(3)]
    record = RECORD.model_copy(update={"revisions": revisions})
    svg = drawn(load_plot(record, points((1, 1), (1, 1))))
    assert [it.text for it in svg.iter(f"{SVG}text") if it.get("fill") == DEPLOYED] == ["@2"]
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    assert path(svg, DEPLOYED).startswith(f"M{middle} ")


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 1000)), min_size=1, max_size=144))
def test_everything_is_inside_of_the_picture(values: list[tuple[float, int]]) -> None:
    svg = drawn(load_plot(RECORD, points(*values)))
    _, _, width, height = map(float, str(svg.get("viewBox")).split())
    for colour in (LOAD, REPLICAS):
        for command, first, second in re.findall(r"([MHV])([0-9.]+)(?: ([0-9.]+))?", path(svg, colour)):
            limits = (height,) if command == "V" else (width,) if command == "H" else (width, height)
            assert all(float(it) <= most for it, most in zip((first, second), limits, strict=False))


def test_a_newer_picture_takes_the_place_of_the_older() -> None:
    page = service_page(serving())
    once = with_load(page, "one")
    assert once.startswith(page)
    assert once.endswith("## The last day\n\none")
    assert with_load(once, "two") == once.removesuffix("one") + "two"
