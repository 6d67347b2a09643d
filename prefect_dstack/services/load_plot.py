"""Replicas and load of a service over the last day, as a picture in Markdown.

It is an SVG inside of the text itself: that is what all of Prefect's UIs show, and it needs no library.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from prefect_dstack.domain.load_history import INTERVAL, LoadPoint
from prefect_dstack.domain.record import ServiceRecord

__all__ = ["load_plot"]

WIDTH, LEFT, RIGHT = 760, 50, 10
PANELS = ((20, 120), (150, 210))
"""Top and bottom of the load, and of the replicas."""
HEIGHT = 235
# They are told apart on a light and on a dark page.
LOAD, REPLICAS, DEPLOYED, TEXT = "#3b82f6", "#f59e0b", "#a855f7", "#888888"


def load_plot(record: ServiceRecord, points: Sequence[LoadPoint]) -> str:
    """Return a picture of what a service has borne, with its deployments marked.

    Args:
        record: The record of the service.
        points: Its load in intervals, the oldest first; at least one.

    Returns:
        Markdown: the picture, and in words what there is to see.
    """
    start, end = points[0].start, points[-1].start + INTERVAL
    busiest = max(points, key=lambda point: point.rate)
    fewest, most = min(it.replicas for it in points), max(it.replicas for it in points)
    served = [
        (moment, revision.number)
        for revision in record.revisions
        for moment in [revision.served_at, *(rollback.at for rollback in revision.rollbacks)]
        if moment is not None and start <= moment <= end
    ]
    axis = _Axis(start, end)
    top, bottom = max(busiest.rate, 1.0), max(most, 1)
    rates = [(point.start, point.rate / top) for point in points]
    replicas = [(point.start, point.replicas / bottom) for point in points]
    parts = [
        *_hours(axis),
        f'<path d="{axis.steps(rates, *PANELS[0], closed=True)}" fill="{LOAD}" fill-opacity="0.5"/>',
        f'<path d="{axis.steps(replicas, *PANELS[1])}" fill="none" stroke="{REPLICAS}" stroke-width="2"/>',
        *(_deployment(axis, moment, number) for moment, number in sorted(set(served))),
        _text(4, PANELS[0][0] - 6, f"requests/s (to {top:.3g})"),
        _text(4, PANELS[1][0] - 6, f"replicas (to {bottom})"),
    ]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    words = (
        f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC: up to {busiest.rate:.3g} requests/s "
        f"(at {busiest.start:%H:%M}), {count} {'replica' if most == 1 else 'replicas'}"
    )
    encoded = base64.b64encode(svg.encode()).decode()
    return f"![Load and replicas](data:image/svg+xml;base64,{encoded})\n\n{words}"


class _Axis:
    """Time from the left to the right."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start, self.end = start, end

    def x(self, moment: datetime) -> float:
        share = (moment - self.start) / (self.end - self.start)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def steps(
        self, values: Iterable[tuple[datetime, float]], top: int, bottom: int, *, closed: bool = False
    ) -> str:
        """Return the path of shares of the height, each of which holds for an interval; gaps stay gaps."""
        path, last = "", None
        for start, share in values:
            y = round(bottom - share * (bottom - top), 1)
            if last is None or start - last > INTERVAL:
                path += f"V{bottom}" if closed and path else ""
                path += f"M{self.x(start)} {bottom if closed else y}"
            path += f"V{y}H{self.x(start + INTERVAL)}"
            last = start
        return path + (f"V{bottom}" if closed else "")


def _hours(axis: _Axis) -> Iterable[str]:
    length = axis.end - axis.start
    every = next(hours for hours in (1, 3, 6) if length <= timedelta(hours=8 * hours) or hours == 6)
    hour = axis.start.replace(minute=0, second=0, microsecond=0)
    while hour <= axis.end:
        if hour >= axis.start and hour.hour % every == 0:
            x = axis.x(hour)
            yield f'<path d="M{x} {PANELS[0][0]}V{PANELS[1][1]}" stroke="{TEXT}" stroke-opacity="0.25"/>'
            yield _text(x, HEIGHT - 8, f"{hour:%H:%M}", anchor="middle")
        hour += timedelta(hours=1)


def _deployment(axis: _Axis, moment: datetime, number: int) -> str:
    x = axis.x(moment)
    line = f'<path d="M{x} {PANELS[0][0]}V{PANELS[1][1]}" stroke="{DEPLOYED}" stroke-dasharray="4 3"/>'
    return line + _text(x, PANELS[0][0] - 6, f"@{number}", anchor="middle", colour=DEPLOYED)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = TEXT) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
