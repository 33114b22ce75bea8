"""Lines that grow while something is trained, drawn with braille dots.

Ours, not textual-plotext's: that draws its lines in no colour of the theme, its legend over them,
and would save some fifty lines for two packages more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.strip import Strip
from textual.widget import Widget

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
AXIS = 7
"""Columns for the figures at the left."""
Line = Sequence[tuple[float, float]]


class LineChart(Widget):
    """Several named lines over one axis; each has a colour of the theme."""

    def __init__(
        self,
        title: str,
        colours: Mapping[str, str],
        *,
        top: float | None = None,
        percent: bool = False,
        id: str | None = None,  # noqa: A002 - Textual's own word
    ) -> None:
        """`colours`: name of a line -> variable of the theme; `top`: of the axis, else the data."""
        super().__init__(id=id)
        self.border_title = title
        self._colours = colours
        self._top = top
        self._percent = percent
        self.lines: dict[str, list[tuple[float, float]]] = {}
        self._last = 1.0
        self._drawn: tuple[tuple[int, int, float], list[list[tuple[int, str]]]] | None = None

    def begin(self, title: str) -> None:
        """Start anew, under another title."""
        self.border_title = title
        self.lines, self._drawn = {}, None
        self.refresh()

    def add(self, name: str, x: float, y: float, last: float) -> None:
        """Add a point to a line; `last` is where the axis ends."""
        self.lines.setdefault(name, []).append((x, y))
        self._last, self._drawn = max(1.0, last), None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one row: the axis, then the lines; below them, what they are."""
        width, height = self.size
        rows = height - 1
        if y >= rows:
            return self._draw_legend(width)
        top = self._top or max((v for line in self.lines.values() for _, v in line), default=1.0)
        plain = self.rich_style
        share = top * (1 - y / max(1, rows - 1))
        value = f"{share:.0%}" if self._percent else f"{share:.2g}"
        mark = f"{value:>{AXIS - 2}} ┤" if y in (0, rows // 2, rows - 1) else " " * (AXIS - 1) + "│"
        segments = [Segment(mark, plain + Style(dim=True))]
        for cell, name in self._draw_canvas(max(0, width - AXIS), max(1, rows), top)[y]:
            style = plain + self._choose_style(name) if name else plain
            segments.append(Segment(chr(0x2800 + cell) if cell else " ", style))
        return Strip(segments).adjust_cell_length(width, plain)

    def _draw_canvas(self, width: int, rows: int, top: float) -> list[list[tuple[int, str]]]:
        """Return every cell's dots, and which line they are of."""
        if self._drawn is None or self._drawn[0] != (width, rows, top):
            cells = [[(0, "")] * width for _ in range(rows)]
            for name, line in self.lines.items():
                for x, y in _join(line, self._last, top, 2 * width, 4 * rows):
                    if 0 <= x // 2 < width:
                        cells[y // 4][x // 2] = cells[y // 4][x // 2][0] | _DOTS[y % 4][x % 2], name
            self._drawn = (width, rows, top), cells
        return self._drawn[1]

    def _draw_legend(self, width: int) -> Strip:
        segments = [Segment(" " * AXIS, self.rich_style)]
        for name, line in self.lines.items():
            value = f"{line[-1][1]:.0%}" if self._percent else f"{line[-1][1]:.3g}"
            segments.append(Segment("● ", self.rich_style + self._choose_style(name)))
            segments.append(Segment(f"{name} {value}  ", self.rich_style))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _choose_style(self, name: str) -> Style:
        variable = self._colours.get(name, "foreground")
        colour = Color.parse(self.app.theme_variables.get(variable, "white"))
        return Style(color=colour.rich_color)


def _join(line: Line, last: float, top: float, width: int, height: int) -> list[tuple[int, int]]:
    """Return the dots of a line, its points joined; the first dot is at the upper left."""

    def place(x: float, y: float) -> tuple[float, float]:
        share = min(1.0, max(0.0, y / top)) if top and math.isfinite(y) else 0.0
        return min(1.0, x / last) * (width - 1), (1 - share) * (height - 1)

    dots: list[tuple[int, int]] = []
    for number, (x, y) in enumerate(line):
        here = place(x, y)
        before = place(*line[number - 1]) if number else here
        steps = max(1, math.ceil(max(abs(here[0] - before[0]), abs(here[1] - before[1]))))
        for step in range(steps + 1):
            part = step / steps
            dots.append(
                (
                    round(before[0] + part * (here[0] - before[0])),
                    round(before[1] + part * (here[1] - before[1])),
                )
            )
    return dots
