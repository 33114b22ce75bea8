"""The paper's two figures, drawn of what was measured: the same shapes as SVG and as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from tue_cli.bench.tables import Results, ResultTable

Point = tuple[float, float]

SCALE = 2
"""Pixels of the PNG for a unit of the drawing."""
INK, PALE = "#1c1c28", "#c9c9d4"
BARS = ("EM", "TAP", "NTGA", "REM", "TUE")
"""The methods of Figure 1."""
COLOURS = {"clean": "#3a9a5b", "TUE": "#cc3d3d", "REM": "#3566c4"}
"""Of Figure 2, as in the paper: clean green, ours red, REM's blue."""


@dataclass
class Drawing:
    """Rectangles, dots and words on white, of a width and a height."""

    width: int
    height: int
    rectangles: list[tuple[float, float, float, float, str]] = field(default_factory=list)
    """Left, top, width, height, colour."""
    dots: list[tuple[float, float, float, str]] = field(default_factory=list)
    """Middle, radius, colour."""
    words: list[tuple[float, float, str, str]] = field(default_factory=list)
    """Left end, middle or right end of the line they stand on, `start`, `middle` or `end`, text."""

    def svg(self) -> bytes:
        """Return the drawing as SVG."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'font-family="sans-serif" font-size="12" fill="{INK}">',
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        for x, y, width, height, fill in self.rectangles:
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{fill}"/>'
            )
        for x, y, radius, fill in self.dots:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"/>')
        for x, y, anchor, text in self.words:
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
            )
        return "\n".join([*parts, "</svg>\n"]).encode()

    def png(self) -> bytes:
        """Return the drawing as PNG."""
        image = Image.new("RGB", (SCALE * self.width, SCALE * self.height), "white")
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(12 * SCALE)
        for x, y, width, height, fill in self.rectangles:
            corners = (x, y, x + width, y + height)
            pen.rectangle([SCALE * place for place in corners], fill=fill)
        for x, y, radius, fill in self.dots:
            corners = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse([SCALE * place for place in corners], fill=fill)
        for x, y, anchor, text in self.words:
            side = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
            pen.text((SCALE * x, SCALE * y), text, fill=INK, font=font, anchor=side)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        return file.getvalue()


def protective_effects(sheet: ResultTable, results: Results, row: str = "4/255") -> Drawing:
    """Return Figure 1 of a table 1: a bar a method at 4/255, the paper's own behind it, paler."""
    dataset = sheet.title[sheet.title.rfind(",") :]
    drawing, bottom, room, tall = Drawing(420, 300), 260.0, 70.0, 210.0
    for share in (0, 25, 50, 75, 100):
        y = bottom - tall * share / 100
        drawing.rectangles.append((48, y, 360, 0.5, PALE))
        drawing.words.append((42, y + 4, "end", str(share)))
    for number, name in enumerate(BARS):
        place = sheet.places.get((row, name))
        if place is None:
            continue
        x = 56 + room * number
        if place.published is not None:
            high = tall * place.published / 100
            drawing.rectangles.append((x, bottom - high, 56, high, PALE))
        result = results.get(place.key)
        if result is not None:
            high = tall * result["mean"]
            drawing.rectangles.append((x + 12, bottom - high, 32, high, COLOURS.get(name, INK)))
        mark = "" if result is None or result["learned"] else "*"
        drawing.words.append((x + 28, bottom + 18, "middle", name + mark))
    drawing.words.append((12, 24, "start", f"Test accuracy at {row}, in percent{dataset}"))
    drawing.words.append(
        (12, 292, "start", "Wide and pale: the paper's. * The victim has not learned enough.")
    )
    return drawing


def draw_map(points: Mapping[str, Sequence[Point]], title: str) -> Drawing:
    """Return Figure 2: a map of pictures, a colour for each kind of them, a key of `COLOURS`."""
    drawing, side = Drawing(460, 480), 400.0
    every = [point for some in points.values() for point in some]
    lows = [min(point[axis] for point in every) for axis in (0, 1)]
    spans = [max(point[axis] for point in every) - lows[axis] or 1 for axis in (0, 1)]
    for name, some in points.items():
        for x, y in some:
            across, down = (x - lows[0]) / spans[0], (y - lows[1]) / spans[1]
            drawing.dots.append((30 + side * across, 40 + side * down, 2.5, COLOURS[name]))
    drawing.words.append((12, 24, "start", title))
    for number, name in enumerate(points):
        x = 40 + 120 * number
        drawing.dots.append((x, 462, 5, COLOURS[name]))
        drawing.words.append((x + 12, 466, "start", name))
    return drawing
