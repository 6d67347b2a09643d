"""What a terminal showed, as an SVG that GitHub shows and that needs no font or program from elsewhere."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

LONGEST = 400
FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
DIM, GREY = 2, 90

# Of an animation: nobody waits longer for the next line, and there is time to read the last one.
LONGEST_PAUSE, READING = 0.8, 8.0


class _Screen(pyte.Screen):
    """A screen that shows dim text in grey, which pyte does not know."""

    def select_graphic_rendition(self, *attributes: int, **options: Any) -> None:
        super().select_graphic_rendition(*(GREY if it == DIM else it for it in attributes), **options)


def recorded(parts: Iterable[tuple[str, str]], title: str, columns: int) -> str:
    """Return an SVG of commands and what they showed.

    Args:
        parts: The commands as they are typed, each with what the terminal got from it.
        title: What is written above them; also the prefix of the identifiers in the SVG.
        columns: The width of the terminal.
    """
    console = Console(record=True, width=columns, file=io.StringIO(), legacy_windows=False)
    for number, (command, raw) in enumerate(parts):
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "bright_black"), (command, "bold")))
        for line in shown(raw, columns):
            console.print(line, no_wrap=True, soft_wrap=True)
    svg = console.export_svg(title=title, unique_id=re.sub(r"\W+", "-", title))
    # Rich names a font of another host.
    return FONT.sub("", svg)


def animated(svg: str, parts: Sequence[tuple[float, str]], columns: int) -> str:
    """Return an SVG of one command in which each line appears when it did, again and again.

    Args:
        svg: What `recorded` made of the command.
        parts: What the terminal got, each with the seconds since the start.
        columns: The width of the terminal.
    """
    times = _shortened([0.0, *_appeared(parts, columns)])
    length = times[-1] + READING
    unique = re.findall(r'clip-path="url\(#([^)]+)-line-0\)"', svg)[0]
    rules = []
    for number, time in enumerate(times):
        line, start = f"{unique}-line-{number}", f"{100 * time / length:.2f}%"
        rules.append(f"@keyframes {line} {{ from {{ opacity: 0 }} {start} {{ opacity: 1 }} }}")
        rules.append(f'[clip-path="url(#{line})"] {{ animation: {line} {length:.1f}s step-end infinite }}')
    still = "@media (prefers-reduced-motion: reduce) { text { animation: none !important } }"
    return svg.replace("</style>", "\n".join([*rules, still, "</style>"]), 1)


def _appeared(parts: Sequence[tuple[float, str]], columns: int) -> list[float]:
    """Return when each line that is shown at the end, or one below it, got its last change."""
    screen = _Screen(columns, LONGEST)
    stream = pyte.Stream(screen)
    before: list[str] = [""] * LONGEST
    times = [0.0] * LONGEST
    for time, part in parts:
        stream.feed(part)
        for row, line in enumerate(screen.display):
            if line != before[row]:
                times[row] = time
        before = list(screen.display)
    last = len(shown("".join(part for _, part in parts), columns))
    # What is written above another line later than it is would else leave a gap.
    return [max(times[: row + 1]) for row in range(last)]


def _shortened(times: Sequence[float]) -> list[float]:
    pauses = [min(LONGEST_PAUSE, after - before) for before, after in itertools.pairwise(times)]
    return list(itertools.accumulate(pauses, initial=0.0))


def shown(raw: str, columns: int) -> list[Text]:
    """Return the lines that a terminal of some width shows at the end.

    Args:
        raw: What it got.
        columns: Its width.
    """
    screen = _Screen(columns, LONGEST)
    pyte.Stream(screen).feed(raw)
    lines = [_line(screen.buffer[row], columns) for row in range(LONGEST)]
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def _line(cells: Any, columns: int) -> Text:
    line = Text()
    for style, part in itertools.groupby((cells[column] for column in range(columns)), _style):
        line.append("".join(cell.data for cell in part), style)
    line.rstrip()
    return line


def _style(cell: Any) -> Style:
    return Style(color=_colour(cell.fg), bold=cell.bold, reverse=cell.reverse)


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return name.replace("brown", "yellow").replace("bright", "bright_")
