"""When a new replica is ready: which probe is asked next, and what its answers come to."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_dstack.configurations import Probe

__all__ = ["Readiness"]

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
GROWTH = 1.3


class Readiness:
    """Counts what the probes of one replica found.

    A probe that has not passed is asked often, so that a replica gets requests as soon as it can answer them.
    From its first pass it is asked at its own interval, until it has passed `ready_after` times in a row.

    Args:
        probes: The probes of the service.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = [_Progress(probe) for probe in probes]

    @property
    def ready(self) -> bool:
        """Whether every probe has passed often enough."""
        return all(it.passed >= it.probe.ready_after for it in self._probes)

    def due(self, now: float) -> list[Probe]:
        """Return which probes to ask now; one that has passed often enough is asked no more.

        Args:
            now: Seconds, by any clock that only goes forward.

        Returns:
            The probes.
        """
        return [it.probe for it in self._probes if not it.done and it.due <= now]

    def note(self, probe: Probe, *, passed: bool, now: float) -> None:
        """Note what a probe found.

        Args:
            probe: One of the probes.
            passed: Whether it passed.
            now: When its answer was there.
        """
        progress = next(it for it in self._probes if it.probe is probe)
        progress.passed = progress.passed + 1 if passed else 0
        if passed:
            progress.due = now + probe.interval
            progress.pause = FIRST_PAUSE
        else:
            progress.due = now + progress.pause
            progress.pause = min(progress.pause * GROWTH, LONGEST_PAUSE)

    def wait(self, now: float) -> float:
        """Return how long nothing is due.

        Args:
            now: As in `due`.

        Returns:
            Seconds; 0 if something is due, or nothing is left to ask.
        """
        return max(0.0, min((it.due for it in self._probes if not it.done), default=now) - now)


class _Progress:
    """How far one probe has come."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.passed = 0
        self.due = 0.0
        self.pause = FIRST_PAUSE

    @property
    def done(self) -> bool:
        return self.passed >= self.probe.ready_after
