"""A replica that has stopped answering is replaced, and one that never answers ever less often."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.domain.record import Replacement, ServiceRecord
from prefect_dstack.domain.replacement import LONGEST_PAUSE, noted, pause_after, replica_to_replace

START = datetime(2030, 1, 1, tzinfo=UTC)
DURATIONS = st.integers(1, 900).map(float)
NAMES = st.sampled_from([f"chat-3-{number}" for number in range(4)])


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def never_well(restart_after: float, startup: float, hours: float) -> list[float]:
    """When a replica is replaced that serves for a while after each start, and then never answers."""
    record, began, replaced = ServiceRecord(name="chat", salt=""), 0.0, []
    for second in range(int(hours * 3600)):
        failing = second - began - startup
        chosen = replica_to_replace(
            {"chat-1-0": failing} if failing > 0 else {}, record.replacements, restart_after, at(second)
        )
        if chosen is not None:
            record, began = noted(record, chosen, "hung", at(second)), float(second)
            replaced.append(float(second))
    return replaced


@given(
    failing=st.dictionaries(NAMES, DURATIONS),
    last=st.dictionaries(NAMES, st.tuples(st.integers(-5000, 0), st.integers(1, 20))),
    restart_after=DURATIONS,
)
def test_only_what_has_failed_for_long_enough_and_was_not_replaced_just_now(
    failing: dict[str, float], last: dict[str, tuple[int, int]], restart_after: float
) -> None:
    known = {name: Replacement(at=at(when), times=times) for name, (when, times) in last.items()}

    chosen = replica_to_replace(failing, known, restart_after, START)

    due = {
        name
        for name, seconds in failing.items()
        if seconds >= restart_after
        and (name not in last or -last[name][0] >= pause_after(last[name][1], restart_after))
    }
    assert (chosen in due) if due else chosen is None
    if chosen is not None:
        assert failing[chosen] == max(failing[name] for name in due)


@settings(max_examples=20, deadline=None)
@given(restart_after=st.integers(5, 120).map(float), startup=st.integers(0, 120).map(float))
def test_one_that_never_gets_well_is_replaced_ever_less_often(restart_after: float, startup: float) -> None:
    times = never_well(restart_after, startup, hours=3)

    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times, "it is replaced at all"
    assert all(pause >= restart_after for pause in pauses)
    assert pauses == sorted(pauses)
    assert pauses[-1] >= LONGEST_PAUSE, "and in the end rarely"


@given(restart_after=DURATIONS, times=st.integers(1, 1000))
def test_the_pause_doubles_up_to_a_bound(restart_after: float, times: int) -> None:
    pause = pause_after(times, restart_after)

    assert restart_after <= pause <= max(restart_after, LONGEST_PAUSE)
    assert pause <= pause_after(times + 1, restart_after)


def test_a_long_time_without_any_makes_it_quick_again() -> None:
    record = ServiceRecord(name="chat", salt="")
    for second in (0, 60, 120):
        record = noted(record, "chat-1-0", "hung", at(second))
    assert record.replacements["chat-1-0"].times == 3

    record = noted(record, "chat-1-0", "hung", at(120 + 3600))

    assert record.replacements["chat-1-0"].times == 1


def test_another_revision_begins_anew() -> None:
    record = noted(ServiceRecord(name="chat", salt=""), "chat-1-0", "hung", START)

    record = noted(record, "chat-2-1", "hung", START)

    assert list(record.replacements) == ["chat-2-1"]
