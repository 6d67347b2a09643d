"""Tables fit their terminal, and break no word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.cli.tables import table_lines

HEADS = ["SERVICE", "STATE", "ENDPOINT", "PROBLEMS"]
SHORT = ["hello", "serving", "http://127.0.0.1:8080", ""]
LONG = ["llm", "degraded", "http://127.0.0.1:8081", "llm-1-0 is gone: gpu-box does not answer within 15 s"]

words = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=30)
cells = st.lists(words, max_size=8).map(" ".join)
rows = st.lists(st.lists(cells, min_size=4, max_size=4), min_size=1, max_size=5)


def test_is_aligned_where_it_fits() -> None:
    assert table_lines(HEADS, [SHORT, LONG], 120) == [
        "SERVICE  STATE     ENDPOINT               PROBLEMS",
        "hello    serving   http://127.0.0.1:8080",
        "llm      degraded  http://127.0.0.1:8081  llm-1-0 is gone: gpu-box does not answer within 15 s",
    ]


def test_folds_its_last_column_where_it_nearly_fits() -> None:
    assert table_lines(HEADS, [SHORT, LONG], 70) == [
        "SERVICE  STATE     ENDPOINT               PROBLEMS",
        "hello    serving   http://127.0.0.1:8080",
        "llm      degraded  http://127.0.0.1:8081  llm-1-0 is gone: gpu-box",
        "                                          does not answer within 15 s",
    ]


def test_becomes_blocks_where_it_does_not_fit() -> None:
    assert table_lines(HEADS, [SHORT, LONG], 60) == [
        "hello",
        "  state     serving",
        "  endpoint  http://127.0.0.1:8080",
        "",
        "llm",
        "  state     degraded",
        "  endpoint  http://127.0.0.1:8081",
        "  problems  llm-1-0 is gone: gpu-box does not answer within",
        "            15 s",
    ]


def test_leaves_out_on_a_terminal_what_is_empty_all_the_way_down() -> None:
    assert table_lines(HEADS, [SHORT], 60)[0] == "SERVICE  STATE    ENDPOINT"
    assert table_lines(HEADS, [SHORT], None)[0] == "SERVICE  STATE    ENDPOINT               PROBLEMS"


def test_has_no_control_characters_of_others() -> None:
    (_, row) = table_lines(["NAME", "WHAT"], [["a", "b\x1b[31m\nc"]], None)
    assert row == "a     b [31m c"


@given(rows=rows, width=st.none() | st.integers(60, 200))
def test_no_word_is_broken_and_none_is_lost(rows: list[list[str]], width: int | None) -> None:
    shown = " ".join(table_lines(HEADS, rows, width)).split()
    for row in rows:
        for word in " ".join(row).split():
            assert word in shown


@given(rows=rows, width=st.integers(60, 200))
def test_only_a_word_that_is_longer_than_what_is_left_goes_over_the_edge(
    rows: list[list[str]], width: int
) -> None:
    for line in table_lines(HEADS, rows, width):
        if len(line) > width:
            assert len(line.split()[-1]) > width - 14 or len(line.split()) == 1, line
