"""Times as they are typed: how long ago, or when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from prefect_dstack.errors import UserError

__all__ = ["age", "duration", "parse_moment"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"(?:\d{1,9}[smhdw])+")


def parse_moment(text: str, option: str) -> datetime:
    """Return the time that a text means.

    Args:
        text: How long ago (`90s`, `10m`, `1h30m`, `2d`), or a date or time as ISO 8601 has it; without a zone
            it is that of this machine.
        option: The option that it was given to, for the message.

    Raises:
        UserError: If it is neither.
    """
    written = text.strip()
    now = datetime.now(UTC)
    try:
        if _AGO.fullmatch(written):
            parts = re.findall(r"(\d+)([smhdw])", written)
            return now - timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))
        return datetime.fromisoformat(written).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"{option} {text}: write how long ago, such as 10m, 2h or 1d, or a time such as "
            f"{now:%Y-%m-%dT%H:%M}"
        ) from None


def age(since: datetime) -> str:
    """Return how long ago a time is, in its two greatest units: `3d4h`, `12m5s`.

    Args:
        since: The time.
    """
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, length)
        if number or (unit == "s" and not parts):
            parts.append(f"{number}{unit}")
    return "".join(parts[:2])


def duration(seconds: float) -> str:
    """Return a duration in the unit that fits it: `4 ms`, `1.2 s`.

    Args:
        seconds: The duration.
    """
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
