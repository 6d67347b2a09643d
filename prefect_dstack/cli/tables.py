"""Tables that fit the terminal: aligned if they can be, else with a folded last column, else as blocks."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence

from prefect_dstack.cli.colours import STATES, paint

__all__ = ["fold", "print_table", "table_lines"]

GAP = "  "
# A folded column narrower than this is harder to read than a block.
NARROWEST = 24

Painter = Callable[[str, str | None], str]


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str] = STATES
) -> None:
    """Print a table.

    Args:
        heads: The heads of the columns.
        rows: The cells, row by row.
        styles: The styles of cells in a column `STATE` or `OUTCOME`, by what is in them.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines(heads, rows, width, styles, paint):
        print(line)  # noqa: T201


def table_lines(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None,
    styles: Mapping[str, str] | None = None,
    painter: Painter = lambda text, style: text,
) -> list[str]:
    """Return the lines of a table. No word is ever broken; one that is longer than a line goes over it.

    Args:
        heads: The heads of the columns.
        rows: The cells, row by row.
        width: That of the terminal; None: as wide as the cells, for programs.
        styles: The styles of cells in a column `STATE` or `OUTCOME`.
        painter: Puts a style on a text.
    """
    rows = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in rows]
    if width is not None:
        # A column that is empty all the way down would only push the others out of sight.
        kept = [n for n in range(len(heads)) if n == 0 or not rows or any(row[n] for row in rows)]
        heads, rows = [heads[n] for n in kept], [[row[n] for n in kept] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    if width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        before = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
        longest = max((len(word) for row in rows for word in row[-1].split()), default=0)
        if width - before < max(longest, min(NARROWEST, widths[-1]), len(heads[-1])):
            return _blocks(heads, rows, width, styles or {}, painter)
        widths[-1] = width - before
    lines = [_line(heads, widths, ["bold"] * len(heads), painter)]
    for row in rows:
        looks = [_style(head, cell, styles or {}) for head, cell in zip(heads, row, strict=True)]
        first, *more = fold(row[-1], widths[-1])
        lines.append(_line([*row[:-1], first], widths, looks, painter))
        indent = " " * (sum(widths[:-1]) + len(GAP) * (len(widths) - 1))
        lines += [f"{indent}{line}" for line in more]
    return lines


def fold(text: str, width: int) -> list[str]:
    """Return a text in lines of a width, broken between words only.

    Args:
        text: The text.
        width: The width.
    """
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, max(1, width), break_long_words=False, break_on_hyphens=False) or [""]


def _line(cells: Sequence[str], widths: Sequence[int], looks: Sequence[str | None], painter: Painter) -> str:
    last = len(cells) - 1
    parts = []
    for number, (cell, width, look) in enumerate(zip(cells, widths, looks, strict=True)):
        padding = "" if number == last or not any(cells[number + 1 :]) else " " * (width - len(cell))
        parts.append(painter(cell, look) + padding)
    return GAP.join(parts).rstrip()


def _blocks(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    styles: Mapping[str, str],
    painter: Painter,
) -> list[str]:
    """Return each row as a block: its first cell, and below it the others by their heads."""
    indent = max(map(len, heads[1:]), default=0) + 2 * len(GAP)
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        lines += [painter(line, "bold") for line in fold(row[0], width)]
        for head, cell in zip(heads[1:], row[1:], strict=True):
            if not cell:
                continue
            folded = fold(cell, max(NARROWEST, width - indent))
            look = _style(head, cell, styles)
            label = f"{GAP}{head.lower()}".ljust(indent)
            lines.append(painter(label, "dim") + painter(folded[0], look))
            lines += [" " * indent + more for more in folded[1:]]
    return lines


def _style(head: str, cell: str, styles: Mapping[str, str]) -> str | None:
    return styles.get(cell) if head in ("STATE", "OUTCOME") else "red" if head == "PROBLEMS" else None
