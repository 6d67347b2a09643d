"""Cron expressions of files, as others read them."""

from __future__ import annotations

__all__ = ["DAYS", "weekdays_named"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def weekdays_named(cron: str) -> str:
    """Return the same cron expression with the names of the days of the week instead of their numbers.

    In a file, 0 is Monday, as in dstack; to cron and to Prefect, it is Sunday.

    Args:
        cron: An expression of five fields, as a configuration accepts it.

    Example:
        >>> weekdays_named("0 8 * * 0-4")
        '0 8 * * mon,tue,wed,thu,fri'
    """
    *others, days = cron.split()
    found = {day for item in days.split(",") for day in _days(item)}
    named = "*" if len(found) == len(DAYS) else ",".join(DAYS[day] for day in sorted(found))
    return " ".join([*others, named])


def _days(item: str) -> range:
    days, _, step = item.partition("/")
    first, _, last = days.partition("-")
    if days == "*":
        first, last = DAYS[0], DAYS[-1]
    elif not last:
        last = DAYS[-1] if step else first
    return range(_number(first), _number(last) + 1, int(step or 1))


def _number(day: str) -> int:
    return DAYS.index(day) if day in DAYS else int(day)
