"""What a program has written since a time: found by the times noted beside its output."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.hosts import supervise
from prefect_dstack.hosts.output import read_output

START = 1_000_000
lines = st.lists(st.tuples(st.integers(0, 3), st.text("ab", max_size=30)), max_size=40)


@given(written=lines, since=st.integers(0, 60), limit=st.integers(40, 400))
def test_since_leaves_out_what_is_older_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[int, str]], since: int, limit: int
) -> None:
    directory = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        clock = START
        patch.setattr("time.time", lambda: float(clock))
        log = supervise._RotatedLog(directory / "output.log", limit, 100)
        expected = []
        for pause, text in written:
            clock += pause
            log.write(f"{text}\n".encode())
            if clock >= START + since:
                expected.append(text)
        log.stream.close()
        log.times.close()

    moment = datetime.fromtimestamp(START + since, UTC)

    assert list(read_output(directory, since=moment)) == expected


def test_all_is_shown_where_no_times_were_noted(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_text("one\ntwo\n")

    assert list(read_output(tmp_path, since=datetime.now(UTC))) == ["one", "two"]
