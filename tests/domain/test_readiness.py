"""A replica is ready when every probe has passed often enough, at its own pace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.configurations import Probe
from prefect_dstack.domain.readiness import Readiness

HEALTH = Probe(url="/health", interval=15)


def test_a_probe_that_needs_one_pass_is_ready_at_once() -> None:
    readiness = Readiness([HEALTH])
    assert readiness.due(0) == [HEALTH]
    assert not Readiness([HEALTH]).ready
    readiness.note(HEALTH, passed=True, now=0.1)
    assert readiness.ready
    assert readiness.due(100) == []
    assert readiness.wait(100) == 0


def test_a_probe_that_fails_is_asked_again_soon_and_then_less_often() -> None:
    readiness = Readiness([HEALTH])
    pauses, now = [], 0.0
    for _ in range(20):
        readiness.note(HEALTH, passed=False, now=now)
        pauses.append(round(readiness.wait(now), 6))
        assert readiness.due(now) == []
        now += pauses[-1] + 1e-6
        assert readiness.due(now) == [HEALTH]
    assert pauses[0] < 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 2


def test_passes_in_a_row_are_an_interval_apart() -> None:
    probe = Probe(url="/warm", interval=5, ready_after=3)
    readiness = Readiness([probe])
    for now in (1.0, 6.0, 11.0):
        assert not readiness.ready
        assert readiness.due(now) == [probe]
        readiness.note(probe, passed=True, now=now)
        assert readiness.due(now + 4.9) == []
    assert readiness.ready


def test_a_failure_between_begins_the_count_anew() -> None:
    probe = Probe(ready_after=2)
    readiness = Readiness([probe])
    for passed in (True, False, True):
        readiness.note(probe, passed=passed, now=0)
        assert not readiness.ready
    readiness.note(probe, passed=True, now=0)
    assert readiness.ready


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_it_is_ready_exactly_when_every_probe_has_passed_so_often_in_a_row(
    wanted: list[int], data: st.DataObject
) -> None:
    probes = [Probe(url=f"/{number}", ready_after=count) for number, count in enumerate(wanted)]
    readiness, rows, now = Readiness(probes), [0] * len(probes), 0.0
    for _ in range(30):
        for probe in readiness.due(now):
            number = probes.index(probe)
            passed = data.draw(st.booleans())
            rows[number] = rows[number] + 1 if passed else 0
            readiness.note(probe, passed=passed, now=now)
        assert readiness.ready == all(row >= count for row, count in zip(rows, wanted, strict=True))
        if readiness.ready:
            return
        assert readiness.wait(now) > 0
        now += readiness.wait(now)
        assert readiness.due(now)
